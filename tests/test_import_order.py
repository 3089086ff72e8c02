"""What the plugin needs may be imported before fairseq, which brings the plugin along."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize("module", ["layers.attention", "data.sentence_dataset"])
def test_a_module_that_the_plugin_needs_comes_first(module):
    code = (
        f"import fairseq_peft.{module}; from fairseq.models import ARCH_MODEL_REGISTRY; "
        "assert 'roberta_small_lora' in ARCH_MODEL_REGISTRY"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
