"""The adapter folder: written whole, read verified, refused with one sentence where it is not what
was written."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapters  # noqa: E402
import safetensors.torch  # noqa: E402

from fairseq_peft import artifact, cli, folders  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.models import folder as folders_model  # noqa: E402

NUM_CORRUPTED = 200


@pytest.fixture(scope="module")
def base(dictionary):
    return adapters.base_state(dictionary)


@pytest.fixture(scope="module")
def good(dictionary, base, tmp_path_factory):
    """A LoRA folder; tests that change it work on a copy."""
    model = adapters.perturbed(dictionary, base)
    return adapters.write(tmp_path_factory.mktemp("good") / "adapter", model, base)


@pytest.fixture(scope="module")
def other(dictionary, tmp_path_factory):
    """Another whole folder: of IA3, on another base."""
    base = adapters.base_state(dictionary, seed=12)
    model = adapters.perturbed(dictionary, base, "ia3")
    return adapters.write(tmp_path_factory.mktemp("other") / "adapter", model, base, seed=2)


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "adapter")


def refused(action, *words):
    """The sentence with which ``action`` refuses."""
    with pytest.raises(InputError) as error:
        action(*words)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def resealed(folder, change):
    """Change the description of ``folder`` as its writer could have."""
    described = json.loads((folder / "adapter.json").read_text())
    change(described)
    for name in ("json_sha256", "schema"):
        described.pop(name, None)
    (folder / "adapter.json").write_bytes(artifact.seal(described))


# ---- What is read is what was written --------------------------------------------------------


def test_what_is_read_is_what_was_written(dictionary, base, tmp_path):
    model = adapters.perturbed(dictionary, base, "lora,bitfit")
    path = adapters.write(tmp_path / "adapter", model, base, labels=["schlecht", "gut ünd mehr"])
    assert {file.name for file in path.iterdir()} == set(artifact.FILES)
    found = artifact.read(path)
    assert found.description["labels"] == ["schlecht", "gut ünd mehr"]
    assert found.description["method"]["peft"] == "lora+bitfit"
    assert found.description["method"]["knobs"] == model.setting.knobs()
    state = model.state_dict()
    assert set(found.tensors) == model.own_names()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.tensors.items())
    assert found.tokenizer.read_bytes().startswith(b"a sentencepiece model")


def test_apply_accounts_for_every_tensor(dictionary, base, good):
    found = artifact.read(good)
    model = adapters.perturbed(dictionary, base, seed=99)
    artifact.apply(model, found)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in found.tensors.items())
    fewer = dict(list(found.tensors.items())[1:])
    lacking = artifact.Artifact(found.folder, found.description, fewer)
    assert "1 missing" in refused(artifact.apply, model, lacking)
    wrong = adapters.perturbed(dictionary, base, "ia3")
    assert "left over" in refused(artifact.apply, wrong, found)


def test_a_tied_tensor_that_trained_is_not_overwritten(dictionary, base, batch, logits, tmp_path):
    """The base's own file has the token embedding again, as the LM head's weight."""
    model = adapters.perturbed(dictionary, base, "full")
    found = artifact.read(adapters.write(tmp_path / "adapter", model, base))
    assert found.description["complete"] and "encoder.lm_head.weight" not in found.tensors
    again = folders_model.load(found, None)
    assert torch.equal(logits(again, batch), logits(model, batch))
    state = again.state_dict()
    body = "encoder.sentence_encoder.embed_tokens.weight"
    assert torch.equal(state["encoder.lm_head.weight"], state[body])
    assert not torch.equal(state[body], base[body])


def test_from_scratch_the_folder_holds_the_whole_model(dictionary, base, batch, logits, tmp_path):
    model = adapters.perturbed(dictionary, base)
    found = artifact.read(adapters.write(tmp_path / "adapter", model, None))
    assert found.description["base"] is None and found.description["complete"]
    assert torch.equal(logits(folders_model.load(found, None), batch), logits(model, batch))


# ---- The base --------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_body_alone(base):
    expected = artifact.fingerprint(base)
    assert artifact.fingerprint(dict(reversed(base.items()))) == expected
    more = {**base, "classification_heads.x.out_proj.weight": torch.ones(2, 16)}
    more["encoder.sentence_encoder.layers.0.in_proj_weight"] = torch.ones(3)
    more["encoder.lm_head.bias"] = torch.ones(35)
    assert artifact.fingerprint(more) == expected
    older = {
        key.replace("encoder.", "decoder.", 1).replace("layernorm_embedding", "emb_layer_norm"): t
        for key, t in base.items()
    }
    assert artifact.fingerprint(older) == expected
    changes = {
        "a value": lambda t: t.index_fill(0, torch.tensor([3]), 7.0),
        "a type": lambda t: t.double(),
        "a shape": lambda t: t[None],
    }
    name = "encoder.sentence_encoder.layers.1.fc1.bias"
    for what, change in changes.items():
        assert artifact.fingerprint({**base, name: change(base[name])}) != expected, what
    renamed = {key.replace("layers.1.fc1.bias", "layers.1.fc1.bios"): t for key, t in base.items()}
    assert artifact.fingerprint(renamed) != expected


def test_another_base_is_refused_unless_it_is_allowed_loudly(good, base, dictionary, caplog):
    found, another = artifact.read(good), adapters.base_state(dictionary, seed=5)
    folders_model.load(found, base)
    text = refused(folders_model.load, found, another)
    assert artifact.fingerprint(another)[:12] in text and "expected" in text
    assert artifact.fingerprint(base)[:12] in text and "--allow-other-base" in text
    assert not caplog.records
    folders_model.load(found, another, True)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert (
        "--allow-other-base" in record.getMessage()
        and "has never been measured" in record.getMessage()
    )
    assert "Give it (--base)" in refused(folders_model.load, found, None)


# ---- 200 corrupted folders -------------------------------------------------------------------


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
        lambda d: d["labels"].append("third"),
        lambda d: d["head"].update(num_classes=5),
        lambda d: d["head"].pop("name"),
        lambda d: d.update(complete="no"),
        lambda d: d.update(base=None),
        lambda d: d.update(base={"path": 3}),
        lambda d: d["files"].pop("dict.txt"),
        lambda d: d["files"]["dict.txt"].update(bytes=3),
        lambda d: d["files"]["adapter.safetensors"].update(sha256="0" * 64),
        lambda d: d.update(method="lora"),
        lambda d: d.pop("tensors"),
        lambda d: d["tensors"].popitem(),
    ]
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
        n for n in artifact.FILES if (OTHER / n).read_bytes() != (path.parent / n).read_bytes()
    ]
    name = rng.choice(names)
    shutil.copy(OTHER / name, path.parent / name)


def exchange_files(path, rng):
    first, second = (path.parent / name for name in rng.sample(artifact.FILES, 2))
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


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda f: f.__name__)
def test_corrupted_folders_are_refused_with_one_sentence(good, other, tmp_path, capsys, corrupt,
                                                         monkeypatch):  # fmt: skip
    """None of 200 and more is accepted, none ends in a traceback; the sentence tells the place."""
    monkeypatch.setattr(sys.modules[__name__], "OTHER", other)
    rng = random.Random(corrupt.__name__)
    for number in range(-(-NUM_CORRUPTED // len(CORRUPTIONS))):
        path = shutil.copytree(good, tmp_path / f"{number}/adapter")
        corrupt(path / rng.choice(artifact.FILES), rng)
        assert cli.main(["verify", str(path)]) == 1, number
        printed = capsys.readouterr()
        assert printed.out == "" and len(printed.err.splitlines()) == 1, printed.err
        assert printed.err.startswith("fairseq-peft verify: error: ") and str(path) in printed.err
        shutil.rmtree(path)


def test_the_untouched_folder_is_accepted(good, other, capsys):
    """What makes the test before mean something."""
    for folder in (good, other):
        assert cli.main(["verify", str(folder)]) == 0
    assert "as written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: (f / "adapter.safetensors").write_bytes(b"x"), "1 bytes, sha256"),
        (lambda f: (f / "dict.txt").unlink(), "dict.txt is missing; adapter.json names it"),
        (lambda f: (f / "adapter.json").unlink(), "it has no adapter.json"),
        (lambda f: (f / "adapter.json").write_text('{"schema": 2}'), "this version reads 1"),
        (lambda f: resealed(f, lambda d: d["files"].pop(artifact.TOKENIZER)), "does not name it"),
        (lambda f: resealed(f, lambda d: d["head"].pop("name")), "lacks head.name"),
    ],
)
def test_the_sentence_says_what_was_expected(copy, change, expected):
    change(copy)
    assert expected in refused(artifact.read, copy)


def test_a_missing_or_extra_tensor_is_named(copy):
    path = copy / "adapter.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = next(iter(tensors))
    tensors["extra"] = tensors.pop(name)
    path.write_bytes(safetensors.torch.save(tensors))
    text = refused(artifact.read, copy)
    assert f"Tensors missing: {name}." in text and "Tensors left over: extra." in text


def test_another_dictionary_is_refused(copy, base):
    """Sealed as if it had been written so: the ids of words would mean others."""
    lines = (copy / "dict.txt").read_text().splitlines()
    (copy / "dict.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    measured = artifact._measure((copy / "dict.txt").read_bytes())
    resealed(copy, lambda d: d["files"].update({"dict.txt": measured}))
    text = refused(folders_model.load, artifact.read(copy), base)
    assert "is not the dictionary that the adapter was trained with" in text


# ---- Written as a whole ----------------------------------------------------------------------

DESCRIBED = {
    "method": {"peft": "lora", "knobs": {}, "targets": []}, "model": {}, "labels": ["a", "b"],
    "head": {"name": "head", "kind": "linear", "num_classes": 2}, "complete": True, "base": None,
    "input": {"max_tokens": 9, "begin": True, "num_texts": 1},
    "dictionary": {"sha256": "", "num_rows": 9},
}  # fmt: skip


def start_writer(folder, words):
    """A process that does nothing but write versions of ``folder``, each higher than the last."""
    first = artifact.read(folder).description["version"] + 1 if folder.parent.exists() else 0
    child = os.fork()
    if child:
        return child
    try:
        for version in itertools.count(first):
            tensors = {"x": torch.full((9_000,), version)}
            artifact.write(folder, tensors, {**DESCRIBED, "version": version}, {"dict.txt": words})
    finally:
        os._exit(1)


def kill(process):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.mark.parametrize("exchanges", [True, False], ids=["one step", "two steps"])
def test_killed_at_any_moment_it_leaves_a_whole_folder(tmp_path, exchanges, monkeypatch):
    """50 times a process that does nothing but write is killed, and what it leaves is whole."""
    if not exchanges:  # as where the file system cannot let two folders change names
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    adapter, words, rng = tmp_path / "run/adapter", tmp_path / "words", random.Random(1)
    words.write_text("w 1\n")
    last = -1
    for _ in range(50):
        process = start_writer(adapter, words)
        while last == -1 and not (adapter / "adapter.json").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        kill(process)
        found = artifact.read(adapter)
        assert found.description["version"] >= last
        last = found.description["version"]
        assert found.tensors["x"].eq(last).all()
    assert last > 5


@pytest.mark.parametrize("exchanges", [True, False], ids=["one step", "two steps"])
def test_a_reader_sees_whole_versions_only(tmp_path, exchanges, monkeypatch):
    """Each newer than the one before, while a process writes them as fast as it can."""
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    adapter, words, seen = tmp_path / "run/adapter", tmp_path / "words", [-1]
    words.write_text("w 1\n")
    process = start_writer(adapter, words)
    try:
        while not (adapter / "adapter.json").exists():
            time.sleep(0.001)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            found = artifact.read(adapter)
            seen.append(found.description["version"])
            assert found.tensors["x"].eq(seen[-1]).all() and seen[-1] >= seen[-2]
    finally:
        kill(process)
    assert len(set(seen)) > 10


def test_a_full_disk_is_one_sentence_and_leaves_the_old(dictionary, base, copy):
    """The system itself refuses: no file may grow beyond 2,000 bytes."""
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    model = adapters.perturbed(dictionary, base, seed=4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors, described = folders_model.content(model, "head", None)
    words = {"dict.txt": copy.parent / "w"}
    words["dict.txt"].write_text("w 1\n")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        text = refused(artifact.write, copy, tensors, described, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(copy) in text and "cannot be written (File too large)" in text
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert sorted(path.name for path in copy.parent.iterdir()) == ["adapter", "w"]


def test_a_folder_that_cannot_be_made_is_one_sentence(dictionary, base, tmp_path):
    (tmp_path / "file").write_text("")
    model = adapters.perturbed(dictionary, base)
    tensors, described = folders_model.content(model, "head", None)
    where = tmp_path / "file" / "adapter"
    assert "cannot be written" in refused(artifact.write, where, tensors, described, {})
    if os.geteuid() != 0:  # for root every folder can be written to
        (tmp_path / "shut").mkdir(mode=0o555)
        where = tmp_path / "shut" / "adapter"
        assert "Permission denied" in refused(artifact.write, where, tensors, described, {})


def test_what_is_no_adapters_is_not_replaced(dictionary, base, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("precious")
    model = adapters.perturbed(dictionary, base)
    tensors, described = folders_model.content(model, "head", None)
    text = refused(artifact.write, tmp_path / "adapter", tensors, described, {})
    assert "holds notes.txt" in text
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "precious"


def test_the_content_of_a_folder_that_was_being_moved_is_found(good, copy):
    os.rename(copy, copy.with_name(".adapter.old"))  # killed between the two moves
    assert folders.current(copy) == copy.with_name(".adapter.old")
    assert artifact.read(copy).tensors.keys() == artifact.read(good).tensors.keys()
    with folders.replaced(copy) as new:
        (new / "x").write_text("new")
    assert [path.name for path in copy.parent.iterdir()] == ["adapter"]


def test_a_link_to_a_folder_stays_a_link(dictionary, base, copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    model = adapters.perturbed(dictionary, base, seed=8)
    for _ in range(2):
        adapters.write(tmp_path / "link", model, base)
    assert (tmp_path / "link").is_symlink() and not (tmp_path / ".link.new").exists()
    found = artifact.read(copy).tensors
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in found.items())
