"""``fairseq-peft to-hf`` of models whose text is cut by another ``--bpe`` than sentencepiece."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import bpe_files  # noqa: E402
import hf_models  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from many_scripts import lines  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.data.text_encoder import TextEncoder  # noqa: E402


def write(kind, folder):
    """A language model beside the files of a kind; what cuts its text, and its dictionary."""
    own = bpe_files.write(kind, folder)
    words = Dictionary.load(str(folder / "dict.txt"))
    words.add_symbol("<mask>")
    hf_models.write_checkpoint(folder / "model.pt", words)
    return own, words


def test_gpt2s_byte_pairs_have_fairseqs_ids_there(tmp_path):
    """On 1,000 lines, single and in pairs, by the library that reads tokenizer.json."""
    from tokenizers import Tokenizer

    own, words = write("gpt2", tmp_path / "gpt2")
    run("to-hf", tmp_path / "gpt2" / "model.pt", tmp_path / "hf", "--no-check")
    theirs = Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    texts = lines(special=False)
    for rows in ([(text,) for text in texts], list(zip(texts[::2], texts[1::2]))):
        ids = TextEncoder(own, words).items(rows, [10**6] * len(rows))
        assert ids == [theirs.encode(*row).ids for row in rows]
    assert theirs.encode("a <mask>").ids[-2] == words.index("<mask>")
    vocab = json.loads((tmp_path / "hf" / "vocab.json").read_text("utf-8"))
    assert sorted(vocab.values()) == list(range(len(words)))
    assert vocab["madeupword0002"] == len(words) - 2
    # And from the folder, its own files are found.
    shutil.copy(tmp_path / "gpt2" / "model.pt", tmp_path)
    words = (tmp_path / "model.pt", tmp_path / "again", "--no-check", "--bpe-dir", tmp_path / "hf")
    run("to-hf", *words)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "dict.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def test_a_dictionary_without_a_piece_is_refused(tmp_path, capsys):
    """fairseq reads it as <unk>; the library knows none."""
    own = bpe_files.write("gpt2", tmp_path)
    rows = (tmp_path / "dict.txt").read_text().splitlines(True)
    gone = str(own.encoder["e"])
    kept = [row for row in rows if row.split()[0] != gone]
    (tmp_path / "dict.txt").write_text("".join(kept))
    words = Dictionary.load(str(tmp_path / "dict.txt"))
    words.add_symbol("<mask>")
    hf_models.write_checkpoint(tmp_path / "model.pt", words)
    line = refused(capsys, "to-hf", tmp_path / "model.pt", tmp_path / "hf", "--no-check")
    assert "1 of the " in line and "'e' for one" in line


def test_codes_of_words_have_no_counterpart(tmp_path, capsys):
    write("subword_nmt", tmp_path / "files")
    capsys.readouterr()
    words = (tmp_path / "files" / "model.pt", tmp_path / "hf", "--no-check")
    assert "--bpe subword_nmt has no counterpart" in refused(capsys, "to-hf", *words)
    both = ("--spm", "m", "--bpe-dir", tmp_path / "files")
    assert "two ways to read text" in refused(capsys, "to-hf", *words, *both)
