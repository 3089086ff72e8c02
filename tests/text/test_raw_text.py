"""Raw text to pieces: nothing lost, nothing leaked, bad input named by file and line."""

import lzma
import random

import bpe_files
import moments
import pytest

from fairseq_peft import folders
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


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("un\ndeux".encode("utf-8-sig"))
    assert list(raw_text.read_lines([tmp_path / "a.txt"])) == ["un", "deux"]


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

    # Made anew, it is at every moment, and so after a kill at any, of one version.
    def content():
        folder = folders.current(out)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    (out / "notes").write_text("mine")
    old, seen = content(), []
    flags[3] = "50"
    with moments.at_each(lambda: seen.append(content())):
        assert main(["prepare-corpus", str(text), *flags]) == 0
    versions = [old, content()]
    numbers = [versions.index(found) for found in seen]  # of another there is none
    assert numbers == sorted(numbers) and {*numbers} == {0, 1} and "notes" in content()


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


@pytest.mark.parametrize("kind", ["gpt2", "none"])
def test_another_bpe_is_copied_and_cuts_the_lines(tmp_path, text, lines, kind):
    own = bpe_files.write(kind, tmp_path / "files")
    out = tmp_path / "out"
    flags = ["--bpe-dir", str(tmp_path / "files"), "--valid-lines", "20"]
    assert main(["prepare-corpus", str(text), "--out", str(out), *flags]) == 0
    found = {path.name for path in out.iterdir()} - {"train.pieces", "valid.pieces"}
    assert found == {"dict.txt", *own.files}
    rows = [
        line
        for name in ("train", "valid")
        for line in (out / f"{name}.pieces").read_text("utf-8").splitlines()
    ]
    assert sorted(rows) == sorted(" ".join(pieces) for pieces in own.encode(lines))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocab-size", "5000"], "No tokenizer of 5000 pieces: Vocabulary size too high"),
        (["--dict", "d.txt"], "--dict without --spm"),
        (["--spm", "m", "--vocab-size", "9"], "would be ignored"),
        (["--bpe", "none", "--vocab-size", "9"], "--vocab-size with --bpe would be ignored"),
        (["--spm", "no.model"], "no.model does not exist"),
        (["--out", __file__], f"{__file__} is a file"),
    ],
)
def test_verb_refuses(tmp_path, text, capsys, flags, message):
    verb = ["prepare-corpus", str(text), "--out", str(tmp_path / "out"), "--valid-lines", "20"]
    assert main([*verb, *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def prepared(caplog, out, raw, *flags):
    """Lines that train and that are held out, and what the verb logged."""
    caplog.set_level("INFO")
    words = [*raw, "--out", out, "--vocab-size", "40", "--seed", "1", *flags]
    assert main(["prepare-corpus", *map(str, words)]) == 0
    tokenizer = raw_text.load_tokenizer(out / "sentencepiece.bpe.model")
    split = {}
    for name in ("train", "valid"):
        rows = (out / f"{name}.pieces").read_text("utf-8").splitlines()
        split[name] = [tokenizer.decode(row.split(" ")) for row in rows]
    return split["train"], split["valid"], caplog.text


def test_a_file_with_a_number_behind_it(tmp_path):
    assert raw_text.split_weight("a.txt") == ("a.txt", 1)
    assert raw_text.split_weight("a.txt.xz:12") == ("a.txt.xz", 12)
    assert raw_text.split_weight("c:d/a.txt") == ("c:d/a.txt", 1)
    named = str(write(tmp_path / "a.txt:3", "un"))
    assert raw_text.split_weight(named) == (named, 1)
    assert raw_text.split_weight(f"{named}:2") == (named, 2)
    with pytest.raises(InputError, match="a.txt:0: 0 copies"):
        raw_text.split_weight("a.txt:0")
    assert raw_text.read_weighted([named, f"{named}:2"]) == ([("un", 1), ("un", 2)], 0)


def test_copies_stand_far_from_each_other():
    pairs = [("a", 1), ("b", 3), ("c", 3), ("d", 1), ("e", 2)]
    assert raw_text.repeat(pairs) == [*"abcde", *"bce", *"bc"]


def test_a_part_of_a_copy_is_a_share_of_the_lines():
    assert raw_text.split_weight("a.txt:2.5") == ("a.txt", 2.5)
    lines = [str(i) for i in range(400)]
    found = raw_text.repeat([(line, 1.25) for line in lines], seed=3)
    assert found[:400] == lines and 70 < len(found) - 400 < 130
    assert len(set(found[400:])) == len(found) - 400
    assert found == raw_text.repeat([(line, 1.25) for line in lines], seed=3)
    assert found != raw_text.repeat([(line, 1.25) for line in lines], seed=4)
    assert 70 < len(raw_text.repeat([(line, 0.25) for line in lines])) < 130


def test_a_weighted_text_is_read_more_often_but_for_what_is_held_out(tmp_path, text, lines, caplog):
    own = [f"la critique {i}" for i in range(100)]
    raw = [text, f"{write(tmp_path / 'own.txt', *own)}:3"]
    train, valid, _ = prepared(caplog, tmp_path / "out", raw, "--valid-lines", "40")
    held_out = set(valid)
    assert held_out & set(own) and held_out & set(lines)
    assert {line: train.count(line) for line in own} == {
        line: 0 if line in held_out else 3 for line in own
    }
    assert sorted(line for line in train if line not in own) == sorted(set(lines) - held_out)


def test_no_copies_are_refused(tmp_path, text, capsys):
    assert main(["prepare-corpus", f"{text}:0", "--out", str(tmp_path / "out")]) == 1
    assert "0 copies. Expected FILE or FILE:N with N above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_excluded_text_is_left_out(tmp_path, lines, caplog):
    """As a line, as a column of one, beside its label, and whatever the spaces; not as a part of a
    text."""
    whole, column, spaces, part, pair, labelled = lines[:6]
    more = [f"Un titre\t{column}", f"{spaces.replace(' ', '  ')} ", f"{part} et la suite"]
    raw = write(tmp_path / "raw.txt", whole, *more, f"le titre\t{pair}", labelled, *lines[6:])
    ban = [whole, f" {column}", spaces, part]
    first = write(tmp_path / "first.txt", *ban)
    second = write(tmp_path / "second.txt", f"le  titre \t{pair}", f"1\t{labelled}", "ici")
    found = prepared(
        caplog, tmp_path / "out", [raw], "--valid-lines", "20", "--exclude", first, second
    )
    read = [" ".join(line.split()) for line in found[0] + found[1]]
    assert sorted(read) == sorted([f"{part} et la suite", *lines[6:]])
    assert "5 lines left out, as they are in --exclude" in found[2]


def test_copies_that_were_cut_are_left_out(tmp_path, lines, caplog, capsys):
    """By their first or last characters; texts that are shorter are compared whole."""
    text = "abcdefghijkl mnopqrstuvwx"
    copies = [f"{text[:12]} et puis", f"un titre\tavant {text[-12:]}", text[6:]]
    others = [text[:11] + " et puis", text[1:20]]
    raw = write(tmp_path / "raw.txt", *copies, *others, *lines)
    ban = write(tmp_path / "ban.txt", f"1\t{text}", "abc")
    words = ["--valid-lines", "20", "--exclude", ban]
    found = prepared(caplog, tmp_path / "out", [raw], *words, "--exclude-ends", "12")
    assert sorted(found[0] + found[1]) == sorted([*others, *lines])
    assert "3 lines left out, as they are in --exclude" in found[2]
    for bad in (["--exclude-ends", "5"], [*words, "--exclude-ends", "-1"]):
        assert main(["prepare-corpus", str(raw), "--out", "x", *map(str, bad)]) == 1
        assert "expected a number of characters above 0" in capsys.readouterr().err


def test_a_missing_excluded_text_is_named(tmp_path, text, capsys):
    words = ["--out", tmp_path / "out", "--exclude", tmp_path / "no.txt"]
    assert main(["prepare-corpus", str(text), *map(str, words)]) == 1
    assert "no.txt does not exist" in capsys.readouterr().err


REVIEW = "Un roman fort et triste, que le vieux chat noir du livre aurait aimé lire. " * 2


def test_other_copies_of_a_held_out_text_do_not_train():
    """A review that is there with its headline, too; and no line that novels repeat."""
    plain, titled = REVIEW.strip(), f"Très fort\t{REVIEW.replace(' ', '  ')}"
    other, short = f"Très fort\t{REVIEW} Ou non.", "— Oui."
    border, over = "o" * raw_text.SHORT_CHARS, "o" * (raw_text.SHORT_CHARS + 1)
    train = [(line, 2) for line in (plain, titled, other, short, border, over, f"x\t{over}")]
    assert raw_text.without_copies(train, [(short, 1), (border, 1)]) == train
    for held_out in (plain, titled):
        kept = raw_text.without_copies(train, [(held_out, 1)])
        assert kept == [(line, 2) for line in (other, short, border, over, f"x\t{over}")]
    assert raw_text.without_copies(train, [(over, 1)]) == train[:5]
    with pytest.raises(InputError, match="All lines to train on are copies of the 1 that"):
        raw_text.without_copies(train[:2], [(plain, 2)])


def test_the_verb_leaves_copies_out_and_says_how_many(tmp_path, lines, caplog):
    reviews = [f"{REVIEW}{i}" for i in range(30)]
    titled = [f"Titre {i % 7}\t{review}" for i, review in enumerate(reviews)]
    files = [write(tmp_path / "plain.txt", *reviews), write(tmp_path / "titled.txt", *titled)]
    raw = [write(tmp_path / "novel.txt", *lines), files[0], f"{files[1]}:4"]
    train, valid, logged = prepared(caplog, tmp_path / "out", raw, "--valid-lines", "60")
    numbers = {line.rsplit(" ", 1)[1] for line in valid if REVIEW.strip() in line}
    copies = [line for line in train if REVIEW.strip() in line]
    assert 0 < len(numbers) < 30
    assert not numbers & {line.rsplit(" ", 1)[1] for line in copies}
    assert len(copies) == (1 + 4) * (30 - len(numbers))
    gone = 2 * len(numbers) - sum(REVIEW.strip() in line for line in valid)
    assert gone > 0 and f"{gone} lines left out of train, as they hold a held-out" in logged
