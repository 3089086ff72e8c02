"""Which sizes a base has: what its tensors show, what its args say, what is asked for."""

from __future__ import annotations

import os
from argparse import Namespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY  # noqa: E402

from fairseq_peft.architectures import SIZES  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.models import sizes  # noqa: E402
from fairseq_peft.models.roberta import BASE_SIZES, RobertaPeftModel  # noqa: E402

BODY = "encoder.sentence_encoder."
WORDS = torch.arange(35 * 12.0).view(35, 12)
TENSORS = {
    BODY + "embed_tokens.weight": WORDS,
    BODY + "embed_positions.weight": torch.zeros(22, 12),
    BODY + "layernorm_embedding.weight": torch.zeros(12),
    BODY + "layers.0.fc1.weight": torch.zeros(7, 12),
    BODY + "layers.10.fc1.weight": torch.zeros(7, 12),
    "encoder.lm_head.weight": WORDS,
}
SHOWN = {
    "encoder_layers": 2,
    "encoder_embed_dim": 12,
    "encoder_ffn_embed_dim": 7,
    "max_positions": 20,
    "encoder_normalize_before": False,
    "layernorm_embedding": True,
    "untie_weights_roberta": False,
    "activation_fn": "gelu",
}


def read(args=None, **tensors):
    state = {"model": {**TENSORS, **tensors}, "args": args and Namespace(**args)}
    found = BASE_SIZES.read(state, "base.pt")
    return {name: found[name] for name in (*SHOWN, "encoder_attention_heads")}


def test_tensors_show_all_but_the_heads():
    assert read() == {**SHOWN, "encoder_attention_heads": None}
    assert read({"encoder_attention_heads": 3}) == {**SHOWN, "encoder_attention_heads": 3}


@pytest.mark.parametrize("heads", [5, 0, -1, "3", None, 12.0])
def test_heads_that_cannot_be_are_not_believed(heads):
    assert read({"encoder_attention_heads": heads})["encoder_attention_heads"] is None


def test_tensors_are_believed_rather_than_args():
    wrong = {"encoder_layers": 3, "encoder_embed_dim": 6, "layernorm_embedding": False}
    assert read({**wrong, "max_positions": 512, "encoder_normalize_before": True}) == read()


@pytest.mark.parametrize(
    ("args", "tensors", "expected"),
    [
        ({}, {BODY + "layer_norm.weight": torch.zeros(12)}, {"encoder_normalize_before": True}),
        ({"activation_fn": "relu"}, {}, {"activation_fn": "relu"}),
        ({}, {"encoder.lm_head.weight": WORDS + 1}, {"untie_weights_roberta": True}),
        # Untied, and not trained since.
        ({"untie_weights_roberta": True}, {}, {"untie_weights_roberta": True}),
    ],
)
def test_what_models_differ_in(args, tensors, expected):
    assert read(args, **tensors) == {**read(), **expected}


def test_names_of_earlier_versions():
    older = {
        name.replace("encoder.", "decoder.", 1).replace("layernorm_embedding", "emb_layer_norm"): t
        for name, t in TENSORS.items()
    }
    assert BASE_SIZES.read({"model": older}, "base.pt") == BASE_SIZES.read(
        {"model": TENSORS}, "base.pt"
    )


def test_a_slim_checkpoint_is_known_by_its_args():
    told = {**SHOWN, "encoder_layers": 9, "encoder_attention_heads": 2}
    state = {"model": {}, "base": {}, "cfg": {"model": told}}
    assert told.items() <= BASE_SIZES.read(state, "slim.pt").items()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"model": {"w": torch.zeros(1)}},
            "has no .*embed_tokens.weight: it is no RoBERTa",
        ),
        (
            {"model": TENSORS, "args": Namespace(no_scale_embedding=False)},
            "no_scale_embedding False, which the plugin's RoBERTa does not compute: it knows True",
        ),
    ],
)
def test_what_is_no_base(state, message):
    with pytest.raises(InputError, match=message):
        BASE_SIZES.read(state, "base.pt")


def test_the_file_that_training_starts_from(tmp_path):
    base, last = tmp_path / "base.pt", tmp_path / "run" / "checkpoint_last.pt"
    other = tmp_path / "other.pt"
    given = Namespace(
        save_dir=str(last.parent), restore_file=last.name, finetune_from_model=str(base)
    )
    assert sizes.start_path(Namespace()) is None
    assert sizes.start_path(given) is None  # whoever starts the run says that there is no file
    base.touch()
    assert sizes.start_path(given) == str(base)
    last.parent.mkdir()
    last.touch()
    assert sizes.start_path(given) == str(last)
    other.touch()
    given.restore_file = str(other)
    assert sizes.start_path(given) == str(other)


def test_a_base_that_was_replaced_is_read_again(tmp_path):
    path = tmp_path / "base.pt"
    for number, dim in enumerate((12, 24)):
        weights = {**TENSORS, BODY + "embed_tokens.weight": torch.zeros(35, dim)}
        args = Namespace(encoder_attention_heads=4)
        torch.save({"model": weights, "args": args, "best_loss": 1.0}, path)
        os.utime(path, (number, number))
        given = Namespace(restore_file=str(path))
        ARCH_CONFIG_REGISTRY["roberta_lora"](given)
        assert (given.encoder_embed_dim, given.peft) == (dim, "lora")


def test_every_architecture_takes_part():
    own = [name for name, model in ARCH_MODEL_REGISTRY.items() if model is RobertaPeftModel]
    assert set(own) == set(BASE_SIZES.named) and len(own) > 40
    free = {name for name, known in BASE_SIZES.named.items() if not known}
    assert free == {name for name in own if not name.startswith(tuple(SIZES))}
