"""A tokenizer.json's tokens in the order of fairseq's dictionary."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.hf import vocabulary, weights  # noqa: E402

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
NOT_USED = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"]


def write(folder, vocab, **more):
    content = {"model": {"vocab": vocab}, **more}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_xlm_r_is_in_order(tmp_path):
    tokens = [*SPECIALS, "a", "b", "<mask>"]
    found = vocabulary.read(write(tmp_path, [[token, 0.0] for token in tokens]))
    assert found[:2] == (tokens, list(range(7)))


def test_camembert_is_put_in_order(tmp_path):
    tokens = [*NOT_USED, "<s>", "</s>", "a", "b", "<mask>"]
    found = vocabulary.read(write(tmp_path, [[token, 0.0] for token in tokens]))
    names = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED", "a", "b"]
    assert found.symbols == [*SPECIALS, *names, "<mask>"]
    assert found.ids == [5, 1, 6, 3, 0, 2, 4, 7, 8, 9]
    # A row that no token has is left out.
    state = {name: torch.arange(11.0) for name in vocabulary.PER_TOKEN}
    state["other"] = torch.arange(11.0)
    moved = found.reorder(state)
    assert moved.pop("other") is state["other"]
    assert all(moved[name].tolist() == found.ids for name in vocabulary.PER_TOKEN)
    assert moved["encoder.lm_head.weight"] is moved[weights.WORDS]
    state["encoder.lm_head.weight"] = 2 * state[weights.WORDS]
    moved = found.reorder(state)
    assert torch.equal(moved["encoder.lm_head.weight"], 2 * moved[weights.WORDS])


def test_byte_pairs_and_tokens_beside_the_vocabulary(tmp_path):
    vocab = {"a": 4, **{token: number for number, token in enumerate(SPECIALS)}}
    added = [{"id": 5, "content": "<mask>"}, {"id": 0, "content": "<s>"}]
    found = vocabulary.read(write(tmp_path, vocab, added_tokens=added))
    assert found[:2] == ([*SPECIALS, "a", "<mask>"], list(range(6)))


def test_the_five_of_bert_are_put_in_order(tmp_path):
    tokens = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    found = vocabulary.read(write(tmp_path, {token: row for row, token in enumerate(tokens)}))
    assert found.symbols == [*SPECIALS, "[unused0]", "a", "##b", "<mask>"]
    assert found.ids == [3, 0, 4, 2, 1, 6, 7, 5]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([*SPECIALS, "a"], "has no <mask>"),
        ([*SPECIALS, "a", "a", "<mask>"], "7 ids up to 6 for 6 tokens"),
        ({"a": 7}, "1 ids up to 7 for 1 tokens"),
        (None, "cannot be read"),
    ],
)
def test_another_layout_is_refused(tokens, message, tmp_path):
    vocab = [[token, 0.0] for token in tokens] if isinstance(tokens, list) else tokens
    with pytest.raises(InputError, match=message):
        vocabulary.read(write(tmp_path, vocab))


def test_positions_are_numbered_from_padding(tmp_path):
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "a", "<mask>"]
    found = vocabulary.read(write(tmp_path, [[token, 0.0] for token in tokens]))
    with pytest.raises(InputError, match="has <pad> as token 0"):
        vocabulary.check_pad(tmp_path, found)
