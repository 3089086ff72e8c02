"""fairseq-peft prepare-pairs: what fairseq reads is what the files say."""

from __future__ import annotations

import moments
import pytest
import verbs

pytest.importorskip("fairseq")

from fairseq.data import Dictionary, data_utils  # noqa: E402

from fairseq_peft import folders  # noqa: E402
from fairseq_peft.data.translation_pairs import Source  # noqa: E402
from fairseq_peft.text import demo_translation  # noqa: E402

LANGUAGES = ("-s", "en", "-t", "xx")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    data = demo_translation.make_demo_translation(general=200, train=30, valid=5, test=5)
    demo_translation.write_demo_translation(data, folder)
    return folder


def files(raw, domain, split, *tag):
    return ":".join([*(str(raw / domain / f"{split}.{end}") for end in ("en", "xx")), *tag])


def texts(folder, split, language):
    words = Dictionary.load(str(folder / f"dict.{language}.txt"))
    rows = data_utils.load_indexed_dataset(
        str(folder / f"{split}.en-xx.{language}"), words, dataset_impl=None
    )
    assert all(row[-1] == words.eos() and words.unk() not in row for row in rows)
    return [words.string(row, "sentencepiece") for row in rows]


def test_rows_are_those_of_the_files(raw, tmp_path, capsys):
    base, new = tmp_path / "base", tmp_path / "new"
    train = files(raw, "general", "train", "__xx__")
    verbs.run("prepare-pairs", base, *LANGUAGES, "--train", train, "--vocab-size", 150)
    source, target = (
        (raw / "general" / f"train.{end}").read_text().splitlines() for end in ("en", "xx")
    )
    assert texts(base, "train", "en") == [f"__xx__ {line}" for line in source]
    assert texts(base, "train", "xx") == target
    assert "\n__xx__ 1\n" in "\n" + (base / "dict.en.txt").read_text()

    model = ("--spm", base / "sentencepiece.bpe.model")
    tests = [files(raw, domain, "test") for domain in demo_translation.DOMAINS]
    court = ("--train", files(raw, "court", "train"), "--train-rows", 7)
    verbs.run("prepare-pairs", new, *LANGUAGES, *model, *court, "--test", *tests)
    assert len(texts(new, "train", "xx")) == 7 and len(texts(new, "test", "xx")) == 10
    assert (new / "dict.xx.txt").read_bytes() == (base / "dict.xx.txt").read_bytes()

    lines = tmp_path / "short"
    lines.write_text("one\n\ntwo\n")
    refused = [
        ((*court, *model, "--vocab-size", 9), "--vocab-size with --spm would be ignored"),
        (("--test", tests[0]), "No text to train"),
        ((), "No data"),
        ((*model, "--train", "one"), "'one' is not SOURCE:TARGET"),
        ((*model, "--train", f"{raw / 'court' / 'train.en'}:{lines}"), "line 2: empty"),
        ((*model, "--train", f"{raw / 'court' / 'train.en'}:{raw / 'court' / 'test.xx'}"), "5."),
        ((*model, "--test", files(raw, "court", "test", "__yy__")), "has no piece __yy__"),
    ]
    for words, message in refused:
        assert message in verbs.refused(
            capsys, "prepare-pairs", tmp_path / "no", *LANGUAGES, *words
        )


def test_a_line_ends_at_lf_alone(tmp_path):
    """A CR within a text, or a byte order mark, moves no line beside another."""
    (tmp_path / "en").write_bytes(b"\xef\xbb\xbfone\rtwo\nthree\x0bmore")
    (tmp_path / "fr").write_bytes(b"UN\r\nDEUX\rTROIS\r\n")
    pairs = Source.parse(f"{tmp_path / 'en'}:{tmp_path / 'fr'}").read()
    assert pairs == [("one two", "UN"), ("three more", "DEUX TROIS")]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_keeps_one_dictionary(raw, tmp_path, capsys):
    """A split that would be read with the words of another model is not left there; what is
    refused, or ends half-way, changes nothing."""
    out, general = tmp_path / "out", [files(raw, "general", split) for split in ("train", "test")]
    words = ("prepare-pairs", out, *LANGUAGES, "--vocab-size")
    verbs.run(*words, 150, "--train", general[0], "--test", general[1])
    (out / "done").touch()
    (out / "notes").mkdir()
    (out / "notes" / "link").symlink_to("../done")
    before, tests = content(out), texts(out, "test", "xx")

    message = verbs.refused(capsys, *words, 100, "--train", general[0])
    assert "test.en-xx" in message and "another dictionary" in message and "--spm" in message
    assert "no piece __yy__" in verbs.refused(
        capsys,
        *(*words[:-1], "--spm", out / "sentencepiece.bpe.model"),
        *("--valid", files(raw, "general", "test", "__yy__")),
    )
    assert content(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]

    # The same dictionary takes further splits; all splits anew take any dictionary.
    model = ("--spm", out / "sentencepiece.bpe.model")
    verbs.run(*words[:-1], *model, "--valid", files(raw, "general", "valid"))
    assert texts(out, "test", "xx") == tests and texts(out, "valid", "xx")
    given = ("--valid", files(raw, "general", "valid"), "--test", general[1])
    verbs.run(*words, 100, "--train", general[0], *given)
    assert content(out)["dict.txt"] != before["dict.txt"] and texts(out, "test", "xx") == tests
    assert content(out).keys() >= before.keys()
    assert (out / "notes" / "link").is_symlink()

    # Whoever reads it at any moment, or after a kill, finds all files of one version.
    old, seen = content(out), []
    with moments.at_each(lambda: seen.append(content(folders.current(out)))):
        verbs.run(*words, 120, "--train", general[0], *given)
    versions = [old, content(out)]
    numbers = [versions.index(found) for found in seen]  # of another there is none
    assert numbers == sorted(numbers) and {*numbers} == {0, 1} and versions[0] != versions[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
