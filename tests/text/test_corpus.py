"""Reading raw data: nothing is lost, nothing shifts, and every refusal names file and line."""

import json

import pytest

from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES, LABELS, NUMBER
from fairseq_peft.text.corpus import read_corpus, sort_labels, stratified_splits

GOOD = {"train": [("a b", "1"), ("c d", "0")], "valid": [("e", "0")], "test": [("f", "1")]}


def write(directory, splits=GOOD):
    directory.mkdir(exist_ok=True)
    for split, rows in splits.items():
        for name, column in (("review", 0), ("label", 1)):
            text = "".join(f"{row[column]}\n" for row in rows)
            (directory / f"{split}.{name}").write_bytes(text.encode())
    return directory


def pairs(corpus, split):
    return [(row.text, row.label) for row in corpus.rows[split]]


def test_directory(tmp_path):
    corpus = read_corpus(write(tmp_path / "raw"))
    assert {split: pairs(corpus, split) for split in corpus.splits} == GOOD
    assert corpus.labels == ["0", "1"] and not corpus.has_pairs and corpus.notes == {}


def test_last_line_without_newline_counts(tmp_path):
    raw = write(tmp_path / "raw")
    (raw / "valid.review").write_bytes(b"e")
    assert pairs(read_corpus(raw), "valid") == [("e", "0")]


def test_test_may_be_absent_but_valid_not(tmp_path):
    raw = write(tmp_path / "raw")
    (raw / "test.review").unlink()
    assert read_corpus(raw).splits == ["train", "valid"]
    (raw / "valid.review").unlink()
    with pytest.raises(InputError, match=r"valid\.review does not exist"):
        read_corpus(raw)


@pytest.mark.parametrize("name", ["review", "label"])
def test_undecodable_bytes_are_named_by_file_and_line(tmp_path, name):
    raw = write(tmp_path / "raw")
    (raw / f"train.{name}").write_bytes("été\n".encode() + "été\n".encode("latin-1"))
    with pytest.raises(InputError, match=rf"train\.{name}:2 is not UTF-8: byte 0xe9 at column 1"):
        read_corpus(raw)


@pytest.mark.parametrize("char", ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\u2028", "\u2029"])
def test_line_breaks_inside_a_line_become_spaces(tmp_path, char):
    raw = write(tmp_path / "raw")
    (raw / "train.review").write_bytes(f"a{char}b\nc{char}{char}d\n".encode())
    corpus = read_corpus(raw)
    assert pairs(corpus, "train") == [("a b", "1"), ("c  d", "0")]
    assert corpus.notes == {"line_breaks_replaced": 3}


def test_windows_files(tmp_path):
    raw = write(tmp_path / "raw")
    for path in raw.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    corpus = read_corpus(raw)
    assert pairs(corpus, "train") == GOOD["train"] and corpus.labels == ["0", "1"]
    assert corpus.notes == {"byte_order_marks_removed": 6, "crlf_line_ends": 8}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.label", "1\n", r"train\.review has 2 lines, .*train\.label 1\."),
        ("train.review", "a\n\n", r"train\.\{review,label\}:2: the text is empty"),
        ("train.review", "a\n \u2028\n", r":2: the text is empty"),
        ("train.label", "1\n\n", r":2: the label is empty"),
        ("train.label", "1\nvery good\n", r":2: the label 'very good' has spaces.*'very_good'"),
        ("train.label", "1\n<unk>\n", r":2: the label '<unk>' is a word that fairseq keeps"),
        ("train.label", "1\n1\n", r"train has one class only, '1'"),
        ("test.label", "2\n", r"test\.\{review,label\}:1: the label '2' of test never occurs in"),
        ("test.review", "", r"test\.review is empty"),
    ],
)
def test_refusals(tmp_path, name, content, message):
    raw = write(tmp_path / "raw")
    (raw / name).write_bytes(content.encode())
    with pytest.raises(InputError, match=message):
        read_corpus(raw)


def test_missing_label_file(tmp_path):
    raw = write(tmp_path / "raw")
    (raw / "test.label").unlink()
    with pytest.raises(InputError, match=r"test\.label cannot be read: No such file"):
        read_corpus(raw)


def test_pairs(tmp_path):
    raw = write(tmp_path / "raw")
    for split, rows in GOOD.items():
        (raw / f"{split}.review2").write_text("z\n" * len(rows))
    corpus = read_corpus(raw)
    assert corpus.has_pairs and [row.text2 for row in corpus.rows["train"]] == ["z", "z"]
    (raw / "valid.review2").write_text("z\nz\n")
    with pytest.raises(InputError, match=r"valid\.review has 1 lines, .*valid\.review2 2\."):
        read_corpus(raw)


def test_labels_that_look_equal_are_one_class_and_counted(tmp_path):
    raw = write(tmp_path / "raw")
    (raw / "train.review").write_text("a\nb\nc\nd\ne\n")
    labels = ["été", "e\u0301te\u0301", "\u200bété", "été ", "non"]
    (raw / "train.label").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    for split in ("valid", "test"):
        (raw / f"{split}.label").write_text("été\n", encoding="utf-8")
    corpus = read_corpus(raw)
    assert corpus.labels == ["non", "été"]
    assert corpus.notes == {"rows_with_cleaned_labels": 3, "spellings_of_labels_joined": 3}


def test_labels_in_fixed_order():
    assert sort_labels({"10", "9", "-1", "2.5"}) == ["-1", "2.5", "9", "10"]
    assert sort_labels({"pos", "neg", "10", "9"}) == ["10", "9", "neg", "pos"]


def test_tsv_with_splits(tmp_path):
    path = tmp_path / "data.tsv"
    lines = ["label\ttext\tsplit"]
    lines += [f'{label}\t"{text}\t{split}' for split in GOOD for text, label in GOOD[split]]
    path.write_bytes("\r\n".join(lines).encode())
    corpus = read_corpus(path)
    assert pairs(corpus, "train") == [('"a b', "1"), ('"c d', "0")]
    assert corpus.splits == ["train", "valid", "test"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tclass\na\t1\n", r"data\.tsv:1: the columns are \['text', 'class'\]"),
        ("text\tlabel\na\t1\nb\t0\tc\n", r"data\.tsv:3 has 3 fields, the header 2"),
        ("text\tlabel\tsplit\na\t1\tall\n", r"data\.tsv:2: split 'all'"),
        ("text\tlabel\n", r"data\.tsv has no rows"),
        ("text\tlabel\tsplit\na\t1\ttrain\nb\t0\ttrain\n", r"no row belongs to valid"),
    ],
)
def test_tsv_refusals(tmp_path, content, message):
    path = tmp_path / "data.tsv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_corpus(path)


def test_json_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"text": f"a\n{split}\u2028{n}", "text2": "z", "label": n, "split": split}
        for split in GOOD
        for n in (0, 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = read_corpus(path)
    assert pairs(corpus, "valid") == [("a valid 0", "0"), ("a valid 1", "1")]
    assert corpus.has_pairs and corpus.notes["line_breaks_replaced"] == 12


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data\.jsonl:2 is not JSON"),
        ("[1]", r":2 is not an object"),
        ('{"text": "a", "label": [0]}', r":2: label is \[0\]\. Expected a string"),
        ('{"text": null, "label": 1}', r":2: text is null"),
        ('{"text": "a"}', r":2: fields \['text'\], the rows before have \['label', 'text'\]"),
        ('{"text": "\\ud800", "label": 1}', r":2: text has half a surrogate pair"),
    ],
)
def test_json_refusals(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_corpus(path)


@pytest.mark.parametrize(
    ("kind", "separator", "label", "message"),
    [
        (LABELS, "|", ["news|sport", "x"], r":1: the label 'news\|sport' has the separator '\|'"),
        (LABELS, ",", ["a,b"], "the label 'a,b' has the separator ','"),
        (LABELS, ",", "c,a|b", r"the label 'a\|b' has a '\|', which stands between labels"),
        (LABELS, ",", ["c", "a|b"], r"the label 'a\|b' has a '\|'"),
        (CLASSES, "|", ["news", "sport"], r"label is \[.*\]\. .* --kind labels"),
        (CLASSES, "|", ["news"], "--kind labels"),
        (NUMBER, "|", ["3"], "--kind labels"),
    ],
)
def test_labels_are_as_many_as_are_listed(tmp_path, kind, separator, label, message):
    """No name is cut where it holds what stands between names, here or in what predict writes."""
    path = tmp_path / "all.jsonl"
    rows = [{"text": f"t{i}", "label": label} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message):
        read_corpus(path, kind=kind, separator=separator)


def test_other_paths(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_corpus(tmp_path / "nothing")
    (tmp_path / "data.txt").write_text("text,label\n")
    with pytest.raises(InputError, match=r"named \.tsv, \.csv, \.jsonl, \.json"):
        read_corpus(tmp_path / "data.txt")


def test_stratified_splits():
    labels = ["a"] * 60 + ["b"] * 40
    splits = stratified_splits(labels, seed=1, valid_share=0.1, test_share=0.2)
    for label, size in (("a", 60), ("b", 40)):
        of = [split for split, other in zip(splits, labels) if other == label]
        assert (of.count("valid"), of.count("test")) == (size // 10, size // 5)
    assert (
        splits == stratified_splits(labels, 1, 0.1, 0.2) != stratified_splits(labels, 2, 0.1, 0.2)
    )
    with pytest.raises(InputError, match="leave nothing to train"):
        stratified_splits(labels, 1, 0.5, 0.5)
    with pytest.raises(InputError, match="class 'b' has 2 rows"):
        stratified_splits(["a"] * 9 + ["b"] * 2, 1, 0.1, 0.1)
