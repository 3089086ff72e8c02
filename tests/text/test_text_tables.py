"""Tables as people have them: packed, quoted, in other encodings, with columns of other names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma

import pytest

from fairseq_peft.errors import InputError
from fairseq_peft.text.corpus import Reader, read_corpus
from fairseq_peft.text.tables import Columns, read

#: split, text, label; texts with what a quoted field is for.
ROWS = [
    ("train", 'un "beau" film, vraiment', "pos"),
    ("train", "nul\tet triste", "neg"),
    ("train", "deux\nlignes", "pos"),
    ("dev", "été; hiver", "neg"),
    ("test", "fade", "pos"),
]
READ = {
    "train": [(ROWS[0][1], "pos"), ("nul\tet triste", "neg"), ("deux lignes", "pos")],
    "valid": [("été; hiver", "neg")],
    "test": [("fade", "pos")],
}
COLUMNS = Columns(text="avis", label="note")


def delimited(rows, header=("id", "note", "avis"), **options):
    """A table whose first column nobody asks for."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n", **options)
    writer.writerows([header] if header else [])
    writer.writerows((number, label, text) for number, (_, text, label) in enumerate(rows))
    return file.getvalue()


def objects(rows):
    return [{"id": None, "note": label, "avis": text} for _, text, label in rows]


WRITERS = {
    ".csv": lambda rows: delimited(rows),
    ".tsv": lambda rows: delimited(rows, delimiter="\t"),
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in objects(rows)),
    ".json": lambda rows: json.dumps(objects(rows), indent=1),
}


def texts(corpus):
    return {split: [(r.text, r.label) for r in corpus.rows[split]] for split in corpus.splits}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_folder_of_tables(tmp_path, suffix):
    for split in ("train", "dev", "test"):
        rows = [row for row in ROWS if row[0] == split]
        (tmp_path / f"{split}{suffix}").write_text(WRITERS[suffix](rows), encoding="utf-8")
    corpus = read_corpus(tmp_path, columns=COLUMNS)
    assert texts(corpus) == READ
    assert corpus.notes["line_breaks_replaced"] == 1


@pytest.mark.parametrize("options", [{}, {"delimiter": ";"}, {"quoting": csv.QUOTE_ALL}])
def test_one_table_by_names_and_by_numbers(tmp_path, options):
    rows = [("", f"texte {i}, {'a' * i}", "pos" if i % 2 else "neg") for i in range(8)]
    path = tmp_path / "data.csv"
    path.write_text(delimited(rows, **options))
    named = read_corpus(path, columns=COLUMNS)
    path.write_text(delimited(rows, header=None, **options))
    assert texts(read_corpus(path, columns=Columns("3", label="2"))) == texts(named)
    assert sum(map(len, texts(named).values())) == 8


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lzma.compress,
        lambda data: data.decode().encode("utf-16"),
        lambda data: b"\xfe\xff" + data.decode().encode("utf-16-be"),
        lambda data: data.decode().encode("utf-32"),
        lambda data: gzip.compress(data.decode().encode("utf-16")),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\n\xef\xbb\xbf", 1),
    ],
)
def test_packed_and_in_other_encodings(tmp_path, pack):
    lines = "".join(f"{text.split()[0]}\n" for _, text, _ in ROWS).encode()
    labels = "".join(f"{label}\n" for _, _, label in ROWS).encode()
    for split in ("train", "valid"):
        (tmp_path / f"{split}.review").write_bytes(pack(lines))
        (tmp_path / f"{split}.label").write_bytes(pack(labels))
    expected = [(text.split()[0], label) for _, text, label in ROWS]
    assert texts(read_corpus(tmp_path))["train"] == expected


def test_a_packed_file_may_say_so_in_its_name(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.csv.gz").write_bytes(gzip.compress(b"text,label\na,1\nb,0\n"))
    assert texts(read_corpus(tmp_path))["test"] == [("a", "1"), ("b", "0")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", r"train\.csv is a \.zip archive, or a table of Excel"),
        (gzip.compress(b"text,label\n" * 99)[:30], r"train\.csv is a damaged \.gz or \.xz file"),
        (b"\xff\xfet", r"train\.csv begins as UTF-16"),
        ("text,label\n".encode("utf-16-le"), r"looks like UTF-16 .*iconv -f UTF-16LE"),
        ("text,label\n".encode("utf-16-be"), r"looks like UTF-16 .*iconv -f UTF-16BE"),
        (b'text,label\n"a" b,1\n', r"train\.csv:2: .*Expected fields with quotes"),
        (b'text,label\n"a,1\n', r"train\.csv:2: .*Expected fields with quotes"),
        (b"text,label\ra,1\r", r"train\.csv:1: a CR without LF stands outside of quotes"),
        (b"avis,label\na,1\n", r"train\.csv:1: the columns are .*Expected one 'text'"),
        (b"text,label\na,1\nb,c,0\n", r"train\.csv:3 has 3 fields, the header 2"),
    ],
)
def test_refusals(tmp_path, content, message):
    (tmp_path / "valid.csv").write_text("text,label\na,1\n")
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_corpus(tmp_path)


def test_a_header_is_no_row_by_number(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("avis,note\na,1\nb,0\nc,1\nd,0\ne,1\nf,0\n")
    numbers = {"text": "1", "label": "2"}
    with pytest.raises(InputError, match="the label 'note' occurs in no other row"):
        read_corpus(path, columns=Columns(**numbers))
    assert read_corpus(path, columns=Columns(**numbers, header=True)).labels == ["0", "1"]


def test_columns_without_effect_and_two_files_of_a_split_are_refused(tmp_path):
    for name in ("train.csv", "dev.csv", "valid.tsv"):
        (tmp_path / name).write_text("text,label\na,1\nb,0\n")
    with pytest.raises(InputError, match=r"dev\.csv and .*valid\.tsv are both valid"):
        read_corpus(tmp_path)
    (tmp_path / "valid.tsv").unlink()
    (tmp_path / "train.review").write_text("a\n")
    with pytest.raises(InputError, match="flags of columns have no effect"):
        read_corpus(tmp_path, columns=COLUMNS)


def test_a_tsv_is_quoted_as_a_whole_or_not_at_all(tmp_path):
    path, reader = tmp_path / "data.tsv", Reader()
    path.write_text('text\tlabel\n"a ""b"""\t1\n"c"\t0\n')
    found = read(path, reader, Columns(), ("text", "label"))
    assert [record.fields["text"] for record in found.records] == ['a "b"', "c"]
    path.write_text('text\tlabel\n"a" b\t1\n"c"\t0\n')
    found = read(path, reader, Columns(), ("text", "label"))
    assert [record.fields["text"] for record in found.records] == ['"a" b', '"c"']
    assert reader.notes == {"tables_with_quoted_fields": 1, "tables_whose_quotes_are_text": 1}


def test_rows_as_they_stand(tmp_path):
    path = tmp_path / "data.csv"
    content = delimited(ROWS, quoting=csv.QUOTE_ALL)
    path.write_text(content)
    table = read(path, Reader(), Columns("avis"), ("text",))
    assert "\n".join([table.header, *(record.raw for record in table.records), ""]) == content


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("columns", "texts2"),
    [
        (Columns(), ["b", "d"]),
        (Columns(text="text"), ["b", "d"]),  # the default by its name
        (Columns(text="autre"), ["b", "d"]),
        (Columns(text="text", text2="autre"), ["y", "z"]),
        (Columns(text="text2"), [None, None]),  # one column is not both texts
        (Columns(label="text2"), [None, None]),
        (Columns(text="text", text2="none"), [None, None]),  # something else, and said so
        (Columns(text2="none"), [None, None]),
    ],
)
def test_the_second_text_is_read_where_its_column_is(tmp_path, suffix, columns, texts2):
    rows = [
        {"text": "a", "text2": "b", "autre": "y", "label": "0"},
        {"text": "c", "text2": "d", "autre": "z", "label": "1"},
    ]
    path = tmp_path / f"pairs{suffix}"
    with path.open("w", newline="") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    records = read(path, Reader(), columns, ("text", "label")).records
    assert [record.fields.get("text2") for record in records] == texts2


def test_a_model_of_pairs_finds_the_second_text_beside_a_flag_for_the_first(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"avis": "a", "text2": "b"}\n')
    (record,) = read(path, Reader(), Columns(text="avis"), ("text", "text2")).records
    assert record.fields == {"text": "a", "text2": "b"}
    with pytest.raises(InputError, match="Expected text, other"):
        read(path, Reader(), Columns(text="text", text2="other"), ("text", "text2"))
    path.write_text('{"avis": "a"}\n')
    with pytest.raises(InputError, match="Expected avis, text2"):
        read(path, Reader(), Columns(text="avis"), ("text", "text2"))


def test_what_nobody_asks_for_may_be_anything(tmp_path):
    """Where texts alone are read, neither a label nor a second text nor a split is looked at."""
    path = tmp_path / "texts.jsonl"
    path.write_text('{"avis": "a", "text2": null, "split": 3}\n{"avis": "b"}\n')
    for columns in (Columns(text="avis"), Columns(text="avis", header=True)):
        records = read(path, Reader(), columns, ("text",)).records
        assert [record.fields for record in records] == [{"text": "a"}, {"text": "b"}]


def test_a_column_given_by_its_number_is_not_the_second_text_too(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("text2,text,label\na,b,0\nc,d,1\n")
    columns = Columns(text="1", header=True)
    (first, _) = read(path, Reader(), columns, ("text", "label")).records
    assert first.fields == {"text": "a", "label": "0"}
