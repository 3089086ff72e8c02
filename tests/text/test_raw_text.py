"""Raw text to pieces: nothing lost, nothing leaked, bad input named by file and line."""

import lzma
import random

import pytest

from fairseq_peft.cli import main
from fairseq_peft.errors import InputError
from fairseq_peft.text import raw_text

WORDS = [
    "le",
    "la",
    "un",
    "une",
    "chat",
    "chien",
    "livre",
    "roman",
    "est",
    "était",
    "très",
    "fort",
    "vieux",
    "triste",
    "gai",
    "rouge",
    "noir",
]


@pytest.fixture(scope="module")
def lines():
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + f" {i}" for i in range(300)]


@pytest.fixture
def text(tmp_path, lines):
    path = tmp_path / "text.txt"
    path.write_bytes("\n".join(lines).encode("utf-8"))
    return path


def test_reads_plain_and_xz_and_leaves_blank_lines_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"un\r\n\n  \ndeux")
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress("trois\u2028x\n".encode()))
    found = list(raw_text.read_lines([tmp_path / "a.txt", tmp_path / "b.txt.xz"]))
    assert found == ["un", "deux", "trois\u2028x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"un\nd\xe9j\xe0\n", "a.txt, line 2: invalid continuation byte (byte 0xe9)"),
        ("a.xz", b"un\n", "not a whole .xz file"),
        ("a.xz", lzma.compress(b"un\n" * 9)[:-20], "not a whole .xz file"),
        ("missing.txt", None, "does not exist"),
    ],
)
def test_unreadable_text_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        list(raw_text.read_lines([tmp_path / name]))
    assert message in str(error.value)


def test_held_out_lines_leave_train(lines):
    train, valid = raw_text.hold_out(lines, 30, seed=1)
    assert len(valid) == 30 and not set(valid) & set(train)
    assert sorted(train + valid) == sorted(lines)
    assert train == [line for line in lines if line in set(train)]
    assert raw_text.hold_out(lines, 30, seed=1)[1] == valid
    assert raw_text.hold_out(lines, 30, seed=2)[1] != valid


@pytest.mark.parametrize("num_valid", [0, 300, 301])
def test_holding_out_nothing_or_all_is_refused(lines, num_valid):
    with pytest.raises(InputError, match="lines to hold out of 300"):
        raw_text.hold_out(lines, num_valid, seed=1)


def test_pieces_and_dictionary_belong_together(tmp_path, text, lines):
    out = tmp_path / "out"
    flags = ["--out", str(out), "--vocab-size", "60", "--valid-lines", "20"]
    assert main(["prepare-corpus", str(text), *flags]) == 0
    tokenizer = raw_text.load_tokenizer(out / "sentencepiece.bpe.model")
    rows = [line.split(" ")[0] for line in (out / "dict.txt").read_text("utf-8").splitlines()]
    assert len(rows) == 60 - 3
    for i, piece in enumerate(rows):  # fairseq has 4 specials where sentencepiece has 3
        assert tokenizer.piece_to_id(piece) + 1 == i + 4
    pieces = {name: (out / f"{name}.pieces").read_text("utf-8").splitlines() for name in
              ("train", "valid")}  # fmt: skip
    decoded = [tokenizer.decode(line.split(" ")) for line in pieces["train"] + pieces["valid"]]
    assert sorted(decoded) == sorted(lines)
    assert len(pieces["valid"]) == 20


def test_a_given_tokenizer_is_copied_and_checked(tmp_path, text, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ["--valid-lines", "20"]
    verb = ["prepare-corpus", str(text), *flags]
    assert main([*verb, "--out", str(first), "--vocab-size", "60"]) == 0
    given = ["--spm", str(first / "sentencepiece.bpe.model")]
    assert main([*verb, "--out", str(second), *given, "--dict", str(first / "dict.txt")]) == 0
    for name in ("dict.txt", "sentencepiece.bpe.model", "train.pieces", "valid.pieces"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    (tmp_path / "other.txt").write_text("abc 1\n")
    capsys.readouterr()
    wrong = [*given, "--dict", str(tmp_path / "other.txt"), "--out", str(tmp_path / "third")]
    assert main([*verb, *wrong]) == 1
    assert "57 of the 57 pieces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocab-size", "5000"], "No tokenizer of 5000 pieces: Vocabulary size too high"),
        (["--dict", "d.txt"], "--dict without --spm"),
        (["--spm", "m", "--vocab-size", "9"], "would be ignored"),
        (["--spm", "no.model"], "no.model does not exist"),
    ],
)
def test_verb_refuses(tmp_path, text, capsys, flags, message):
    verb = ["prepare-corpus", str(text), "--out", str(tmp_path / "out"), "--valid-lines", "20"]
    assert main([*verb, *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
