"""Which names a user's words mean: targets, layers, numbers by pattern."""

from __future__ import annotations

import pytest

from fairseq_peft.architectures import Dims
from fairseq_peft.errors import InputError
from fairseq_peft.injection import targets

DIMS = Dims(3, 16, 24, 4, 40, 35)
NAMES = [*DIMS.linears(), *DIMS.embeddings()]
TWO_STACKS = [
    *(f"encoder.layers.{layer}.self_attn.q_proj" for layer in range(3)),
    *(
        f"decoder.layers.{layer}.{kind}_attn.q_proj"
        for layer in range(2)
        for kind in ("self", "encoder")
    ),
    "encoder.embed_tokens",
]
FLAG = "--lora-rank-pattern"


def of(*layers, kinds):
    return [f"layers.{layer}.{kind}" for layer in layers for kind in kinds]


@pytest.mark.parametrize(
    "words, layers, expected",
    [
        ("fc1", "", of(0, 1, 2, kinds=["fc1"])),
        ("fc2, fc1,fc2", "1", of(1, kinds=["fc1", "fc2"])),
        ("self_attn.q_proj", "0-1", of(0, 1, kinds=["self_attn.q_proj"])),
        ("layers.2.fc1,embed_tokens", "", ["layers.2.fc1", "embed_tokens"]),
        ("all-linear", "", NAMES[:-1]),
        ("all-linear", "2,0", NAMES[:6] + NAMES[12:18]),
        ("all-linear,embed_tokens", "", NAMES),
        (r"layers\.[02]\.fc1", "", of(0, 2, kinds=["fc1"])),
        (r".*\.(q|v)_proj", "1-2", of(1, 2, kinds=["self_attn.q_proj", "self_attn.v_proj"])),
        (r"layers\.\d{1,2}\.fc1", "0", ["layers.0.fc1"]),
        (".*", "", NAMES),
    ],
)
def test_what_words_mean(words, layers, expected):
    assert targets.select(NAMES, words, layers) == expected


@pytest.mark.parametrize(
    "words, layers, expected",
    [
        ("decoder.encoder_attn.q_proj", "", ["D.0.encoder_attn.q_proj", "D.1.encoder_attn.q_proj"]),
        (
            "encoder.q_proj",
            "",
            ["E.0.self_attn.q_proj", "E.1.self_attn.q_proj", "E.2.self_attn.q_proj"],
        ),
        ("decoder.self_attn.q_proj", "1", ["D.1.self_attn.q_proj"]),
        ("decoder.all-linear", "0", ["D.0.self_attn.q_proj", "D.0.encoder_attn.q_proj"]),
        ("encoder.layers.2.self_attn.q_proj", "", ["E.2.self_attn.q_proj"]),
        ("encoder.embed_tokens", "", ["encoder.embed_tokens"]),
        ("q_proj", "decoder.1", ["D.1.self_attn.q_proj", "D.1.encoder_attn.q_proj"]),
        (
            "self_attn.q_proj",
            "encoder.1-2,decoder.0",
            ["E.1.self_attn.q_proj", "E.2.self_attn.q_proj", "D.0.self_attn.q_proj"],
        ),
        (
            "self_attn.q_proj",
            "encoder.0,1",
            ["E.0.self_attn.q_proj", "E.1.self_attn.q_proj", "D.1.self_attn.q_proj"],
        ),
    ],
)
def test_what_words_mean_in_two_stacks(words, layers, expected):
    found = targets.select(TWO_STACKS, words, layers)
    assert [
        name.replace("encoder.layers", "E").replace("decoder.layers", "D") for name in found
    ] == expected


@pytest.mark.parametrize(
    "names, words, layers, message",
    [
        (
            "two",
            "encoder.encoder_attn.q_proj",
            "",
            "'encoder.encoder_attn.q_proj' matches no module",
        ),
        ("two", "decoder.decoder.q_proj", "", "matches no module"),
        (
            "two",
            "q_proj",
            "decoder.2",
            "layer decoder.2. This model has the layers 0 to 2 (encoder), 0 to 1 (decoder).",
        ),
        ("two", "q_proj", "both.1", "'both.1' is neither a layer nor a range"),
        (
            "one",
            "q_proj",
            "decoder.1",
            "there is no layer decoder.1. This model has the layers 0 to 2.",
        ),
        ("one", "layers.q_proj", "", "'layers.q_proj' matches no module"),
    ],
)
def test_stacks_that_are_not_there_are_refused(names, words, layers, message):
    with pytest.raises(InputError) as error:
        targets.select({"one": NAMES, "two": TWO_STACKS}[names], words, layers)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words, layers, message",
    [
        ("query", "", "--peft-targets 'query' matches no module. Modules here: q_proj, k_proj, "),
        ("proj", "", "'proj' matches no module"),  # whole words, not ends of words
        ("q_proj,value", "", "'value' matches no module"),
        ("", "", "'' matches no module"),
        (" , ", "", "' , ' matches no module"),
        ("fc.", "", "'fc.' matches no module"),  # a dot alone makes no regular expression
        ("layers.3.fc1", "", "'layers.3.fc1' matches no module"),
        (r"layers\.0", "", "matches no module"),  # a regular expression is for the whole name
        ("(fc1", "", "'(fc1' is no regular expression (missing )"),
        ("fc1[", "", "'fc1[' is no regular expression"),
        ("*", "", "'*' is no regular expression (nothing to repeat"),
        ("embed_tokens", "0", "'embed_tokens' matches no module of the layers 0"),
        ("layers.0.fc1,fc2", "1", "'layers.0.fc1' matches no module of the layers 1"),
        ("fc1", "3", "layers '3': there is no layer 3. This model has the layers 0 to 2."),
        ("fc1", "1-3", "there is no layer 3"),
        ("fc1", "2-1", "there is no layer '2-1'"),
        ("fc1", "-1", "'-1' is neither a layer nor a range"),
        ("fc1", "0-", "'0-' is neither a layer nor a range"),
        ("fc1", "first", "'first' is neither a layer nor a range"),
        ("fc1", ",", "there is no layer ','"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, layers, message):
    with pytest.raises(InputError) as error:
        targets.select(NAMES, words, layers)
    assert message in str(error.value)
    assert str(error.value).endswith(".")


def test_the_flag_is_the_one_that_was_typed():
    with pytest.raises(InputError, match="^--ia3-targets 'x' matches no module"):
        targets.select(NAMES, "x", flag="--ia3-targets")


@pytest.mark.parametrize(
    "text, expected",
    [("0", [0]), ("2,0", [0, 2]), ("0-1, 1-2", [0, 1, 2]), ("1-1", [1])],
)
def test_layers(text, expected):
    assert targets.parse_layers(text, NAMES) == {("", layer) for layer in expected}


def test_layers_of_two_stacks_are_numbered_alike():
    assert targets.layer_of("decoder.layers.11.fc1") == 11
    assert targets.layer_of("embed_tokens") is None


def test_numbers_by_pattern():
    """The first pattern that means a name decides."""
    text = r"layers.0.fc1=4, fc1=16,layers\.[12]\..*_proj=2"
    found = targets.by_pattern(NAMES, text, FLAG, int, 8)
    assert list(found) == NAMES
    assert [found[f"layers.{layer}.fc1"] for layer in range(3)] == [4, 16, 16]
    assert found["layers.0.self_attn.q_proj"] == 8 and found["layers.1.self_attn.q_proj"] == 2
    assert found["embed_tokens"] == 8
    assert targets.by_pattern(NAMES, "", FLAG, int, 8) == dict.fromkeys(NAMES, 8)
    assert targets.by_pattern(NAMES, "all-linear=0.5", FLAG, float, 8)["layers.2.fc2"] == 0.5


@pytest.mark.parametrize(
    "text, kind, message",
    [
        ("fc1", int, "'fc1' is no pair of a name"),
        ("=4", int, "'=4' is no pair"),
        ("fc1=", int, "'fc1=' is no pair"),
        ("fc1=0", int, "and a positive integer: give such as fc1=16,v_proj=4."),
        ("fc1=-1", int, "'fc1=-1' is no pair"),
        ("fc1=0.5", int, "and a positive integer"),
        ("fc1=nan", float, "and a positive number"),
        ("fc1=inf", float, "'fc1=inf' is no pair"),
        ("(fc1=4", int, "'(fc1=4' is no pair of a name, or a regular expression without commas"),
        ("fc1=4,fc1=8", int, "names fc1 twice"),
        ("value=4", int, "value=4 would be ignored: it fits none of what is adapted (q_proj, "),
        ("fc1=4,layers.0.fc1=2", int, "layers.0.fc1=2 would be ignored"),
    ],
)
def test_patterns_that_decide_nothing_are_refused(text, kind, message):
    with pytest.raises(InputError) as error:
        targets.by_pattern(NAMES, text, FLAG, kind, 8)
    assert message in str(error.value) and str(error.value).startswith(FLAG)
    assert str(error.value).endswith(".")
