"""Corrupted adapter folders of every kind: each refused with one sentence, without a traceback."""

from __future__ import annotations

import json
import random
import shutil
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
import safetensors.torch  # noqa: E402

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.adapters import seal  # noqa: E402
from fairseq_peft.models import folder as folders_model  # noqa: E402

#: Family -> folders; what reads them is the same, but for the words and the task.
NUM_CORRUPTED = {"roberta": 200, "bart": 48, "hf": 48}


def resealed(folder, change):
    """Change the description of ``folder`` as its writer could have."""
    described = json.loads((folder / "adapter.json").read_text())
    change(described)
    for name in ("json_sha256", "schema"):
        described.pop(name, None)
    (folder / "adapter.json").write_bytes(adapter_folder.seal(described))


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def insert(path, rng):
    data = path.read_bytes()
    place = rng.randrange(len(data) + 1)
    path.write_bytes(data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:])


def overwrite(path, rng):
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    piece = rng.randbytes(rng.randint(4, 64))
    data[place : place + len(piece)] = piece
    path.write_bytes(data)


def exchange_bytes(path, rng):
    data = bytearray(path.read_bytes())
    first, second = rng.sample(range(len(data)), 2)
    while data[first] == data[second]:
        second = rng.randrange(len(data))
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)


def rename_a_field(path, rng):
    described = json.loads((path.parent / "adapter.json").read_text())
    name = rng.choice(list(described))
    described[name + "_"] = described.pop(name)
    (path.parent / "adapter.json").write_text(json.dumps(described, indent=1) + "\n")


def change_a_value(path, rng):
    """Sealed anew: what is left is that the fields do not fit each other, or the files."""
    changes = [
        lambda d: d.update(complete="no"),
        lambda d: d.update(base=None),
        lambda d: d.update(base={"path": 3}),
        lambda d: d["files"]["adapter.safetensors"].update(sha256="0" * 64),
        lambda d: d.update(method="lora"),
        lambda d: d.pop("tensors"),
        lambda d: d["tensors"].popitem(),
    ]
    described = json.loads((path.parent / "adapter.json").read_text())
    if "head" in described:
        changes += [
            lambda d: d["labels"].append("third"),
            lambda d: d["head"].update(num_classes=5),
            lambda d: d["head"].pop("name"),
            lambda d: d["files"].pop("dict.txt"),
            lambda d: d["files"]["dict.txt"].update(bytes=3),
        ]
    else:
        changes += [lambda d: d.pop("task"), lambda d: d.update(task="translation")]
    if "dictionaries" in described:
        changes += [
            lambda d: d["dictionaries"].pop("source"),
            lambda d: d["dictionaries"]["target"].update(num_rows="all"),
            lambda d: d["files"].pop("dict.en.txt"),
        ]
    if "tokenizer" in described:
        changes += [lambda d: d["tokenizer"].pop("sha256")]
    resealed(path.parent, rng.choice(changes))


def other_json(path, rng):
    texts = ["", "{", "[]", "null", "3", '"text"', "[" * 100_000, '{"schema": 1}', "\xff\xfe", "{}"]
    texts += ['{"schema": 99}', '{"schema": {}}', '{"json_sha256": "", "schema": 1}']
    (path.parent / "adapter.json").write_text(rng.choice(texts), encoding="latin-1")


def other_tensors(path, rng):
    """A whole safetensors file, with a tensor renamed, dropped, added, or reshaped."""
    path = path.parent / "adapter.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = rng.choice(list(tensors))
    value = tensors.pop(name)
    kind = rng.randrange(4)
    if kind == 0:
        tensors[name + "_"] = value
    elif kind == 1:
        tensors.update({name: value, "extra": torch.zeros(2)})
    elif kind == 2:
        tensors[name] = value.reshape(-1, 1)
    path.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))


def take_anothers(path, rng):
    names = [
        n
        for n in names_in(path.parent)
        if (OTHER / n).read_bytes() != (path.parent / n).read_bytes()
    ]
    name = rng.choice(names)
    shutil.copy(OTHER / name, path.parent / name)


def exchange_files(path, rng):
    first, second = (path.parent / name for name in rng.sample(names_in(path.parent), 2))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def remove(path, rng):
    path.unlink()


CORRUPTIONS = [
    *(flip, cut, insert, overwrite, exchange_bytes, rename_a_field, change_a_value, other_json),
    *(other_tensors, take_anothers, exchange_files, remove),
]
OTHER = None


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("family", NUM_CORRUPTED)
@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda f: f.__name__)
def test_corrupted_folders_are_refused_with_one_sentence(folders, family, tmp_path, capsys, corrupt,
                                                         monkeypatch):  # fmt: skip
    """None is accepted, none ends in a traceback; the sentence tells the place."""
    good, other = folders(family)
    monkeypatch.setattr(sys.modules[__name__], "OTHER", other)
    rng = random.Random(corrupt.__name__)
    for number in range(-(-NUM_CORRUPTED[family] // len(CORRUPTIONS))):
        path = shutil.copytree(good, tmp_path / f"{number}/adapter")
        corrupt(path / rng.choice(names_in(good)), rng)
        assert cli.main(["verify", str(path)]) == 1, number
        printed = capsys.readouterr()
        assert printed.out == "" and len(printed.err.splitlines()) == 1, printed.err
        assert printed.err.startswith("fairseq-peft verify: error: ") and str(path) in printed.err
        shutil.rmtree(path)


@pytest.mark.parametrize("family", NUM_CORRUPTED)
def test_the_untouched_folder_is_accepted(folders, family, capsys):
    """What makes the test before mean something."""
    for folder in folders(family):
        assert cli.main(["verify", str(folder)]) == 0
    assert "as written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: (f / "adapter.safetensors").write_bytes(b"x"), "1 bytes, sha256"),
        (lambda f: (f / "dict.txt").unlink(), "dict.txt is missing; adapter.json names it"),
        (lambda f: (f / "adapter.json").unlink(), "it has no adapter.json"),
        (lambda f: (f / "adapter.json").write_text('{"schema": 2}'), "this version reads 1"),
        (
            lambda f: resealed(f, lambda d: d["files"].pop(adapter_folder.TOKENIZER)),
            "does not name it",
        ),
        (lambda f: resealed(f, lambda d: d["head"].pop("name")), "lacks head.name"),
    ],
)
def test_the_sentence_says_what_was_expected(copy, change, expected):
    change(copy)
    assert expected in adapter_folders.refused(adapter_folder.read, copy)


def test_a_missing_or_extra_tensor_is_named(copy):
    path = copy / "adapter.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = next(iter(tensors))
    tensors["extra"] = tensors.pop(name)
    path.write_bytes(safetensors.torch.save(tensors))
    text = adapter_folders.refused(adapter_folder.read, copy)
    assert f"Tensors missing: {name}." in text and "Tensors left over: extra." in text


def test_another_dictionary_is_refused(copy, base):
    """Sealed as if it had been written so: the ids of words would mean others."""
    lines = (copy / "dict.txt").read_text().splitlines()
    (copy / "dict.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    measured = seal.measure((copy / "dict.txt").read_bytes())
    resealed(copy, lambda d: d["files"].update({"dict.txt": measured}))
    text = adapter_folders.refused(folders_model.load, adapter_folder.read(copy), base)
    assert "is not the dictionary that the adapter was trained with" in text
