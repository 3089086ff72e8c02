"""``fairseq-peft from-hf`` of what is no RoBERTa by name: BERT, encoders alone, several files."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import safetensors.torch  # noqa: E402
from hf_models import weights_of  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.hf import readers, vocabulary, weights  # noqa: E402
from fairseq_peft.text import bpe  # noqa: E402

BODY = "encoder.sentence_encoder."
#: RoBERTa -> BERT, for what begins with it.
NAMES = {
    "roberta.": "bert.",
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "lm_head.bias": "cls.predictions.bias",
    "classifier.dense.": "bert.pooler.dense.",
    "classifier.out_proj.": "classifier.",
}


def bert_name(name):
    for ours, theirs in NAMES.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise KeyError(name)


def as_bert(folder, bare=False, older=False):
    """A folder of to-hf as a BERT's: other names, positions from 0, two segments, WordPiece."""
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state = {bert_name(name): tensor for name, tensor in state.items()}
    positions = "bert.embeddings.position_embeddings.weight"
    segments = torch.stack([torch.full((16,), 0.5), torch.full((16,), 7.0)])
    state[positions] = state[positions][2:] - segments[0]
    state["bert.embeddings.token_type_embeddings.weight"] = segments
    state["cls.seq_relationship.weight"] = torch.ones(2, 16)
    if "bert.pooler.dense.weight" not in state:
        state["bert.pooler.dense.weight"] = torch.ones(16, 16)
    if bare:
        state = {name[5:]: t for name, t in state.items() if name.startswith("bert.")}
    if older:
        state = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in state.items()}
    safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, path)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="bert", layer_norm_eps=1e-12)
    config.update(pad_token_id=0, type_vocab_size=2, max_position_embeddings=40)
    config["architectures"] = [name.replace("Roberta", "Bert") for name in config["architectures"]]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def word_pieces(folder, **normalizer):
    """WordPiece in place of sentencepiece: BERT's five are the first rows, in BERT's order."""
    found = vocabulary.read(folder)
    rest = [f"w{row}" for row in range(len(found.symbols) - 5 - 26)]
    rest += [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *rest]
    normal = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None, **normalizer}
    content = {
        "normalizer": normal,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "vocab": {token: row for row, token in enumerate(tokens)}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "sentencepiece.bpe.model").unlink()
    return tokens


def close(before, after, rows=None):
    """Whether two checkpoints agree in what both have; sums lose the last bit."""
    for name in after:
        expected = before[name]
        if rows is not None and name in vocabulary.PER_TOKEN:
            expected = expected[rows]
        if name == BODY + "embed_positions.weight":
            expected, found = expected[2:], after[name][2:]
        else:
            found = after[name]
        assert torch.allclose(found, expected, atol=1e-6), name


@pytest.mark.parametrize("older", [False, True])
def test_bert_is_a_roberta(older, folder, tmp_path):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    as_bert(tmp_path / "hf", older=older)
    tokens = word_pieces(tmp_path / "hf")
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    state = torch.load(tmp_path / "back" / "model.pt", weights_only=False)
    assert state["args"].layer_norm_eps == 1e-12 and state["args"].max_positions == 40
    # Stock fairseq, which would compute with 1e-5, does not know this name.
    assert state["args"].arch == "roberta_full"
    rows = [2, 0, 3, 1, *range(5, len(tokens)), 4]
    before = weights_of(folder / "lm.pt")
    close(before, weights_of(tmp_path / "back" / "model.pt"), rows)
    place = bpe.locate(tmp_path / "back")
    assert place.kind == "bert" and place.options == {"cased": False}
    assert (tmp_path / "back" / "vocab.txt").read_text().split("\n") == [*tokens, ""]
    lines = (tmp_path / "back" / "dict.txt").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines] == tokens[5:]


def test_bert_goes_back_as_a_roberta_that_reads_word_pieces(folder, tmp_path):
    pytest.importorskip("tokenizers")
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    word_pieces(as_bert(tmp_path / "hf"))
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    run("to-hf", tmp_path / "back" / "model.pt", tmp_path / "again", "--no-check")
    run("from-hf", tmp_path / "again", tmp_path / "third", "--no-check")
    for path in (tmp_path / "back").iterdir():
        if path.suffix != ".pt":
            assert path.read_bytes() == (tmp_path / "third" / path.name).read_bytes(), path.name
    one, other = (weights_of(tmp_path / name / "model.pt") for name in ("back", "third"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_berts_pooler_is_the_dense_layer_of_a_classifier(folder, converted, tmp_path):
    as_bert(converted)
    run("from-hf", converted, tmp_path / "back", "--no-check")
    found = weights_of(tmp_path / "back" / "model.pt")
    before = weights_of(folder / "classifier.pt")
    here, there = "classification_heads.head.", "classification_heads.sentence_classification_head."
    before = {name.replace(here, there): tensor for name, tensor in before.items()}
    assert there + "dense.weight" in found and there + "out_proj.bias" in found
    close(before, found)


def test_an_encoder_alone_has_names_without_its_family(folder, tmp_path, capsys):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    as_bert(tmp_path / "hf", bare=True)
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    assert "no LM head" in capsys.readouterr().out
    found = weights_of(tmp_path / "back" / "model.pt")
    assert not any("lm_head" in name or "heads" in name for name in found)
    close(weights_of(folder / "lm.pt"), found)


def test_several_files_and_rows_without_a_token(folder, tmp_path, capsys):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    path = tmp_path / "hf" / "model.safetensors"
    state = safetensors.torch.load_file(path)
    for name in (weights.to_hf(weights.WORDS), "lm_head.bias"):
        state[name] = torch.cat([state[name], state[name][:3]])
    parts = {f"model-{part + 1:05}-of-00002.safetensors": sorted(state)[part::2] for part in (0, 1)}
    for name, names in parts.items():
        safetensors.torch.save_file({n: state[n] for n in names}, path.with_name(name))
    path.unlink()
    index = {"weight_map": {n: name for name, names in parts.items() for n in names}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    before, after = weights_of(folder / "lm.pt"), weights_of(tmp_path / "back" / "model.pt")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert "encoder.lm_head.bias" in after
    path.with_name(next(iter(parts))).unlink()
    capsys.readouterr()
    line = refused(capsys, "from-hf", tmp_path / "hf", tmp_path / "other", "--no-check")
    assert "cannot be read" in line


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"strip_accents": False}, "folds case without accents"),
        ({"handle_chinese_chars": False}, "handle_chinese_chars False, expected True"),
        ({"type": "Lowercase"}, "normalizer type 'Lowercase'"),
    ],
)
def test_word_pieces_by_other_rules_are_read_by_nothing_here(
    values, told, folder, tmp_path, capsys
):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    word_pieces(as_bert(tmp_path / "hf"), **values)
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    assert told in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"model.pt", "dict.txt"}


def test_byte_pairs_get_gpt2s_numbers():
    """``!`` is 0, the first byte that cannot be seen 188, the first merge 256."""
    numbers = readers.gpt2_numbers(["\u0120 t", "\u0120t he"])
    assert numbers["!"] == 0 and numbers["~"] == 93 and numbers["\u0100"] == 188
    assert numbers["\u0120"] == 220 and numbers["\u0120t"] == 256 and numbers["\u0120the"] == 257
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "\u0120the", "madeupword0000", "<mask>"]
    assert readers.numbered(symbols, numbers)[4:] == ["257", "madeupword0000", "<mask>"]
