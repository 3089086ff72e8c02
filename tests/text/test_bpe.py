"""``--bpe``: pieces are those of fairseq's own encoders, and a folder says how it reads text."""

from __future__ import annotations

import argparse
import json
import shutil
from types import SimpleNamespace

import pytest

fairseq = pytest.importorskip("fairseq")

import bpe_files  # noqa: E402
from fairseq.data import Dictionary, encoders  # noqa: E402
from fairseq.models.roberta.hub_interface import RobertaHubInterface  # noqa: E402
from many_scripts import lines  # noqa: E402

from fairseq_peft.data.text_encoder import TextEncoder  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.text import bpe, raw_text  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> a folder of it."""
    place = tmp_path_factory.mktemp("bpe")
    for kind in bpe_files.KINDS:
        bpe_files.write(kind, place / kind)
    (place / "sentencepiece").mkdir()
    texts = lines(1000, seed=7, special=False)
    raw_text.train_tokenizer(texts, place / "sentencepiece", vocab_size=290)
    return {path.name: path for path in place.iterdir() if path.is_dir()}


@pytest.fixture
def copy(folders, tmp_path):
    """``copy(kind)``: a folder of it that may be changed."""
    return lambda kind: shutil.copytree(folders[kind], tmp_path / kind)


def theirs(subwords):
    """fairseq's encoder for the same files."""
    return encoders.build_bpe(argparse.Namespace(**subwords.fairseq_flags()))


@pytest.mark.parametrize("kind", ["sentencepiece", "gpt2", "subword_nmt"])
def test_pieces_are_those_of_fairseq(folders, kind):
    """On 1,000 lines; and what they say in return."""
    own = bpe.find(folders[kind])
    other, rows = theirs(own), lines()
    expected = [other.encode(row).split() for row in rows]
    assert own.encode(rows) == expected
    assert [own.decode(row) for row in expected] == [other.decode(" ".join(r)) for r in expected]
    assert max(map(len, expected)) > 20 and len({tuple(row) for row in expected}) > 900


def test_fastbpe_cuts_as_subword_nmt_with_the_same_pairs(folders):
    """Its library needs a compiler; by hand, it agreed on these lines, too."""
    rows = lines()
    own, other = (bpe.find(folders[kind]) for kind in ("fastbpe", "subword_nmt"))
    assert list(own.ranks) == list(other.ranks) and own.encode(rows) == other.encode(rows)


def test_codes_of_version_1_have_the_end_of_a_word_as_a_letter(copy):
    folder = copy("subword_nmt")
    codes = ["l o", "lo w", "e r", "er </w>", "w e"]
    (folder / "bpecodes").write_text("".join(f"{code}\n" for code in codes))
    own = bpe.find(folder)
    rows = ["lower low  wer l", "er lowlow"]
    assert own.encode(rows)[0] == ["low@@", "er", "low", "w@@", "er", "l"]
    assert own.encode(rows) == [theirs(own).encode(row).split() for row in rows]


def test_bert_cuts_words_as_bert_does(copy):
    folder = copy("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "deja", "Déjà", "vu", "##e", "中", "!"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), "utf-8")
    row = "Déjà\u00a0vue\x07 中中! xyz"
    told = {"bpe": "bert"}
    for cased, first in ((False, "deja"), (True, "Déjà")):
        (folder / bpe.TOLD).write_text(json.dumps({**told, "cased": cased}))
        found = bpe.find(folder)
        assert found.encode([row]) == [[first, "vu", "##e", "中", "中", "!", "[UNK]"]]
        assert found.vocabulary() == words[5:]
        assert found.fairseq_flags()["bpe_cased"] is cased


def test_what_sentencepiece_does_not_know_is_written_as_fairseq_does(folders):
    pieces = ["\u2581a", "<unk>", "\u2581", "<unk>", "\u2581"]
    own = bpe.find(folders["sentencepiece"])
    assert own.decode(pieces) == "a<unk> <unk>" == theirs(own).decode(" ".join(pieces))


def test_none_takes_what_stands_between_spaces(folders):
    own = bpe.find(folders["none"])
    assert own.encode(["E V\u00a0Q  L", ""]) == [["E", "V", "Q", "L"], []]
    assert own.decode(["E", "V"]) == "E V" and own.fairseq_flags() == {}


@pytest.mark.parametrize("kind", [*bpe_files.KINDS, "sentencepiece"])
def test_ids_are_those_of_fairseqs_hub(folders, kind):
    """Single texts and pairs: ``<s> a </s></s> b </s>``, by the dictionary of the folder."""
    own = bpe.find(folders[kind])
    words = Dictionary.load(str(folders[kind] / "dict.txt"))
    words.add_symbol("<mask>")
    hub = SimpleNamespace(task=SimpleNamespace(source_dictionary=words))
    if kind in ("bert", "fastbpe", "none"):  # without their libraries
        hub.bpe = SimpleNamespace(encode=lambda text: " ".join(own.encode([text])[0]))
    else:
        hub.bpe = theirs(own)
    texts = lines(special=False)
    encoder = TextEncoder(own, words)
    pairs = list(zip(texts[::2], texts[1::2]))
    for rows in ([(text,) for text in texts], pairs):
        expected = [RobertaHubInterface.encode(hub, *row).tolist() for row in rows]
        assert encoder.items(rows, [10**6] * len(rows)) == expected
    # Rows of <unk> are rare where the dictionary was made of everything that is frequent.
    assert encoder.num_unknown < 1500 and len(words) > 50
    single, pair = encoder.items([("E V",), ("E V", "E")], [10**6] * 2)
    assert single[0] == 0 and single[-1] == 2
    assert pair[: len(single)] == single and pair[len(single)] == 2 and pair[-1] == 2


def test_half_a_surrogate_pair_is_no_traceback(folders):
    for folder in folders.values():
        own = bpe.find(folder)
        assert own.encode(["a \ud800 b"]) == own.encode(["a \ufffd b"])


# What a folder says


@pytest.mark.parametrize("kind", [*bpe_files.KINDS, "sentencepiece"])
def test_what_is_written_is_found_again(folders, kind, tmp_path):
    own = bpe.find(folders[kind])
    bpe.write(own, tmp_path)
    again = bpe.find(tmp_path)
    assert type(again) is type(own) and again.options == own.options
    assert {path.name for path in tmp_path.iterdir()} == again.files.keys()
    assert set(again.files) <= set(bpe.FILES)
    assert again.encode(lines(20)) == own.encode(lines(20))


def test_gpt2_files_and_a_sentencepiece_model_speak_for_themselves(copy):
    folder = copy("gpt2")
    (folder / bpe.TOLD).unlink()
    assert bpe.find(folder).kind == "gpt2"
    folder = copy("subword_nmt")
    (folder / bpe.TOLD).unlink()
    assert bpe.find(folder) is None  # or fastbpe?
    (folder / "bpecodes").rename(folder / "codes")
    assert bpe.find(folder, "subword_nmt").files["bpecodes"].name == "codes"


def damaged(folder, name, content):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("gpt2", "vocab.bpe", None, "vocab.bpe does not exist, and --bpe gpt2 reads text with it"),
        ("gpt2", "encoder.json", b'{"a": 1', "encoder.json is damaged"),
        ("gpt2", "encoder.json", b'{"a": "b"}', "encoder.json is damaged"),
        ("gpt2", "encoder.json", b'{"a": 1}', "encoder.json lacks "),
        ("gpt2", "vocab.bpe", b"\xff\xfe\n", "vocab.bpe is damaged: no UTF-8"),
        ("gpt2", "vocab.bpe", b"#v\na b c\n", "'a b c' is a line of it, expected a pair"),
        ("subword_nmt", "bpecodes", b"", "bpecodes holds no pair"),
        ("subword_nmt", "bpecodes", b"#version: 0.3\na b\n", "is of version 0.3"),
        ("subword_nmt", "bpecodes", b"a b 3\n", "expected a pair."),
        ("fastbpe", "bpecodes", b"a b\n", "expected a pair and its count"),
        ("bert", "vocab.txt", b"a\nb\n", "vocab.txt has no line [UNK]"),
        ("bert", "vocab.txt", b"[UNK]\n[CLS]\na\n", "vocab.txt has no line [SEP]"),
        ("bert", "bpe.json", b'{"bpe": "bert", "lower": 1}', "has no option 'lower'"),
        ("none", "bpe.json", b'{"bpe": "words"}', "--bpe words is unknown. Known: sentencepiece,"),
        ("none", "bpe.json", b"{}", "bpe.json is damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(copy, kind, name, content, said):
    folder = copy(kind)
    damaged(folder, name, content)
    with pytest.raises(InputError) as error:
        bpe.find(folder)
    text = str(error.value)
    assert said in text and "\n" not in text and text.endswith(".")


def test_a_dictionary_of_something_else_is_refused(folders, tmp_path):
    own = bpe.find(folders["gpt2"])
    (tmp_path / "dict.txt").write_text("abc 1\n")
    with pytest.raises(InputError, match="has no piece of --bpe gpt2"):
        bpe.write_with_dictionary(own, tmp_path / "dict.txt", tmp_path)
    with pytest.raises(InputError, match="is in the dictionary. Give the files of --bpe gpt2"):
        TextEncoder(own, Dictionary())


# Flags


def flags(*words):
    parser = argparse.ArgumentParser()
    bpe.add_arguments(parser)
    for name in ("--spm", "--dict"):
        parser.add_argument(name, type=raw_text.Path)
    return parser.parse_args(list(map(str, words)))


def test_flags_name_a_folder(folders):
    found, dictionary = bpe.from_arguments(flags("--bpe-dir", folders["bert"]))
    assert (found.kind, dictionary) == ("bert", folders["bert"] / "dict.txt")
    found, _ = bpe.from_arguments(
        flags("--bpe", "bert", "--bpe-dir", folders["bert"], "--bpe-cased")
    )
    assert found.options == {"cased": True}
    found, dictionary = bpe.from_arguments(flags("--dict", dictionary, "--bpe", "none"))
    assert (found.kind, dictionary) == ("none", folders["bert"] / "dict.txt")
    assert bpe.from_arguments(flags()) == (None, None)
    assert bpe.from_arguments(flags("--bpe", "sentencepiece")) == (None, None)
    found, dictionary = bpe.from_arguments(flags("--bpe", "none"))
    assert (found.kind, dictionary) == ("none", None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bpe", "gpt2"], "--bpe gpt2 without its files"),
        (["--bpe", "gpt2", "--spm", "m"], "--bpe gpt2 and --spm name two ways"),
        (["--bpe-dir", "d", "--spm", "m"], "--bpe-dir d and --spm name two ways"),
        (["--bpe", "gpt2", "--bpe-cased"], "--bpe-cased goes with --bpe bert alone"),
        (["--bpe-dir", "d"], "d does not say how it reads text"),
        (["--bpe", "fastbpe", "--bpe-dir", "d"], "d/bpecodes does not exist"),
    ],
)
def test_flags_that_do_not_fit(words, said):
    with pytest.raises(InputError, match=said):
        bpe.from_arguments(flags(*words))
