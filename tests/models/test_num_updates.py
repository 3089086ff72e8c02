"""fairseq tells a model the number of updates at each step: none of these has a use for it."""

from __future__ import annotations

import pytest
from fairseq.models import BaseFairseqModel, FairseqEncoder
from families import FAMILIES

from fairseq_peft.models.peft_model import PeftModel

KNOWN = (PeftModel, BaseFairseqModel, FairseqEncoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_module_wants_to_know(dictionary, family):
    model = FAMILIES[family](dictionary).build("lora")
    own = {
        type(module).set_num_updates
        for module in model.modules()
        if hasattr(module, "set_num_updates")
    }
    assert type(model).set_num_updates is PeftModel.set_num_updates
    assert own <= {known.set_num_updates for known in KNOWN}
