"""``fairseq-peft fold-case``: the same pieces and ids, whatever the case of the text."""

from __future__ import annotations

import pytest

from fairseq_peft.cli import main
from fairseq_peft.text import raw_text

TEXTS = ["Ce livre est NUL", "un Chef-d'Œuvre", "Très, TRÈS décevant…", "ÉTÉ À PARIS"]


@pytest.fixture
def model(tmp_path):
    lines = ["ce livre est nul", "un chef-d'œuvre très décevant", "Été et livre à Paris"] * 5
    raw_text.train_tokenizer(lines, tmp_path, vocab_size=28)
    return tmp_path / raw_text.MODEL_NAME


def test_pieces_and_ids_stay_and_case_does_not_matter(model, tmp_path):
    out = tmp_path / "folded.model"
    assert main(["fold-case", str(model), str(out)]) == 0
    before, after = raw_text.load_tokenizer(model), raw_text.load_tokenizer(out)
    assert len(after) == len(before)
    for i in range(len(before)):
        assert after.id_to_piece(i) == before.id_to_piece(i)
        assert after.get_score(i) == before.get_score(i)
    for text in TEXTS:
        assert after.encode(text) == after.encode(text.upper()) == before.encode(text.casefold())
    assert before.encode(TEXTS[0]) != after.encode(TEXTS[0])
    # A dict.txt of the model goes with it.
    raw_text.copy_tokenizer(out, tmp_path / raw_text.DICT_NAME, tmp_path)


def test_refusals(model, tmp_path, capsys):
    out = tmp_path / "folded.model"
    assert main(["fold-case", str(model), str(out)]) == 0
    again = tmp_path / "again.model"
    for words, said in (
        ([str(model), str(out)], "exists"),
        ([str(out), str(again)], "folds case already"),
        ([str(tmp_path / "no.model"), str(again)], "does not exist"),
        ([str(tmp_path / raw_text.DICT_NAME), str(again)], "is not a sentencepiece model"),
    ):
        assert main(["fold-case", *words]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not again.exists()
