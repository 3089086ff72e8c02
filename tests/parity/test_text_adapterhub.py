"""BART and mBART of fairseq with adapters and prefixes, against AdapterHub's `adapters`: the same
logits, gradients and training. One base each, from one random seed, brought there by `to-hf`.

`scripts/test.sh parity` sets up what this needs; adapters_hf.py has the library's half.
"""

from __future__ import annotations

import re

import hf_models
import pytest
import torch
from comparison import Differences, learn_and_compare, part, random_texts, write_records
from safetensors.torch import save_file

from fairseq_peft import cli

pytestmark = pytest.mark.parity

KINDS = ("bart", "mbart")
CASES = ("houlsby", "pfeiffer", "parallel", "prefix")
NUM_PREFIX = 3  # as in adapters_hf.py
#: Of the name of a tensor of ours -> of theirs.
RENAMES = [
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.attention_adapter\.", ".attention_adapters.adapters.a."),
    (r"\.ffn_adapter\.", ".output_adapters.adapters.a."),
    (r"\.down\.", ".adapter_down.0."),
    (r"\.up\.", ".adapter_up."),
]
#: Where their prefixes are: of the encoder, the decoder, and the attention between them.
PREFIXES = r"prefix_tunings\.a\.(encoder|self|cross)_prefix\.control_trans$"


def random_batch():
    """What their forward takes, the rows padded at the right, and the answers (4, 6)."""
    source, target, answer = random_texts()
    return {
        "input_ids": source,
        "attention_mask": source.ne(1).long(),
        "decoder_input_ids": target,
        "answer": answer,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where our bases are, and the library's records."""
    place = tmp_path_factory.mktemp("adapterhub")
    for kind in KINDS:
        hf_models.write_encoder_decoder(place / "ours" / kind, kind)
        words = ["to-hf", place / "ours" / kind / "model.pt", place / "base" / kind, "--no-check"]
        assert cli.main([str(word) for word in words]) == 0
        save_file(random_batch(), place / f"batch-{kind}.safetensors")
    found = write_records("FAIRSEQ_PEFT_ADAPTERS_PYTHON", "adapters_hf.py", place, *KINDS)
    return place / "ours", {name: one for name, one in found.items() if "batch" not in name}


def theirs(record, what, name, num_heads=4):
    """Their tensor of ours called ``name``: ``what`` is before, grad or after."""
    tensors = part(record, what)
    if not name.endswith("prefix.embeddings"):
        for pattern, text in RENAMES:
            name = re.sub(pattern, text, name)
        return tensors[name]
    places = {re.search(PREFIXES, key)[1]: tensor for key, tensor in tensors.items()}
    if name.startswith("encoder"):
        return places["encoder"].view(NUM_PREFIX, -1)
    # Layer by layer the decoder's own attention, then the one between; keys and values of each.
    layers = [places[key].view(NUM_PREFIX, 2, 1, -1) for key in ("self", "cross")]
    return torch.cat(layers, 2).view(NUM_PREFIX, -1)


def build(base, kind, case, **flags):
    if case == "prefix":
        return hf_models.encoder_decoder_on(
            base / kind, kind, "prefix", prefix_num_tokens=NUM_PREFIX
        )[0]
    flags = {"adapter_style": case, "adapter_bottleneck": 4, **flags}
    return hf_models.encoder_decoder_on(base / kind, kind, "adapter", **flags)[0]


def compare(model, record) -> Differences:
    model.eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == sum(
        tensor.numel() for tensor in part(record, "before").values()
    ), "another set of tensors trains"
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(theirs(record, "before", name))
    batch = random_batch()

    def logits():
        lengths = batch["attention_mask"].sum(1)
        return model(batch["input_ids"], lengths, batch["decoder_input_ids"])[0].flatten(0, 1)

    answer, wanted = batch["answer"].flatten(), record["logits"].flatten(0, 1)
    return learn_and_compare(trained, logits, answer, record, wanted, theirs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_fairseqs_own_models_compute_and_learn_as_with_adapterhub(kind, case, made):
    base, records = made
    differences = compare(build(base, kind, case), records[f"{kind}-{case}"])
    print(f"{kind}, {case}: {differences}")
    differences.check()


def test_negative_control_another_adapters_activation_is_seen(made):
    base, records = made
    model = build(base, "bart", "pfeiffer", adapter_activation="silu")
    with pytest.raises(AssertionError, match="logits"):
        compare(model, records["bart-pfeiffer"]).check()


def test_every_record_of_adapterhub_on_fairseqs_own_is_compared(made):
    assert set(made[1]) == {f"{kind}-{case}" for kind in KINDS for case in CASES}
