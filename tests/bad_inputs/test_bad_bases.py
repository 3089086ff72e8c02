"""Bad bases: one clear sentence, a non-zero exit, before training starts, nothing half-written.

Each case goes through the command line of fairseq-train.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
from payload import Payload

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from bench import refused  # noqa: E402
from helpers import TINY  # noqa: E402


def test_missing_base(bench):
    done = bench.train(finetune_from_model="nowhere.pt")
    refused(bench, done, "base checkpoint nowhere.pt does not exist", "--from-scratch")


def test_missing_restore_file(bench):
    done = bench.train(finetune_from_model=None, restore_file="nowhere.pt")
    refused(bench, done, "base checkpoint nowhere.pt does not exist", "--from-scratch")


def test_no_base_and_not_from_scratch(bench):
    refused(bench, bench.train(finetune_from_model=None), "No base checkpoint", "--from-scratch")


def test_base_and_from_scratch(bench):
    refused(bench, bench.train(from_scratch=True), "--from-scratch and a base .* exclude each")


def test_base_and_restore_file(bench):
    done = bench.train(restore_file=bench.base)
    refused(bench, done, "--finetune-from-model .* and --restore-file .* exclude each other")


def test_base_and_reset_flags(bench):
    refused(bench, bench.train(reset_optimizer=True), "Leave --reset-optimizer and the like out")


def test_restore_file_of_another_criterion(bench):
    done = bench.train(finetune_from_model=None, restore_file=bench.base)
    refused(bench, done, "optimizer of a run with MaskedLmLoss", "--finetune-from-model")


def test_pointer_of_git_lfs(bench):
    """What a clone without Git LFS has in the base's place."""
    pointer = bench.folder / "model.pt"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    done = bench.train(finetune_from_model=pointer)
    refused(bench, done, "model.pt is a pointer of Git LFS", "git lfs pull")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_base(bench, share):
    done = bench.train(finetune_from_model=bench.cut(bench.base, share=share))
    refused(bench, done, "cut.pt cannot be read as a checkpoint: it is cut short")


def test_truncated_last_checkpoint(bench):
    bench.save_dir.mkdir()
    last = bench.cut(bench.base, "run/checkpoint_last.pt")
    done = bench.train()
    last.unlink()
    refused(bench, done, "checkpoint_last.pt cannot be read as a checkpoint")


def test_base_that_is_text(bench):
    path = bench.folder / "model.pt"
    path.write_text("not a checkpoint\n")
    refused(bench, bench.train(finetune_from_model=path), "model.pt holds more than tensors")


def test_base_that_is_another_zip(bench):
    path = bench.folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    refused(bench, bench.train(finetune_from_model=path), "model.pt cannot be read")


def test_base_that_is_a_folder(bench):
    refused(bench, bench.train(finetune_from_model=bench.folder), "does not exist")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_base_with_a_payload_is_not_run(bench, legacy):
    path, trace = bench.folder / "model.pt", bench.folder / "the-payload-ran"
    if legacy:
        path.write_bytes(pickle.dumps({"model": {}, "x": Payload(trace)}))
    else:
        torch.save({"model": {}, "x": Payload(trace)}, path)
    refused(bench, bench.train(finetune_from_model=path), "is not opened, .* could run code")
    assert not trace.exists()


@pytest.mark.parametrize(
    "state, message",
    [
        ({"weights": torch.zeros(1)}, "has no weights under 'model'"),
        ([1, 2], "has no weights under 'model'"),
        ({"model": {"a": 1}}, "has no weights under 'model'"),
        ({"model": {"a": torch.zeros(1)}}, "not the entries 'optimizer_history'"),
    ],
)
def test_base_of_another_program(bench, state, message):
    torch.save(state, bench.folder / "model.pt")
    refused(bench, bench.train(finetune_from_model=bench.folder / "model.pt"), message)


def test_base_with_a_dictionary_of_another_size(bench):
    data = bench.rows(lambda rows: None, words=31)
    done = bench.train(data)
    refused(bench, done, r"embed_tokens.weight is \(35, 16\), expected \(36, 16\)", "dict.txt")


def test_base_with_another_dictionary_of_the_same_size(bench):
    """The ids would all be there, and mean other words."""
    data = bench.own_data()
    lines = (data / "input0/dict.txt").read_text().splitlines()
    base = Path(shutil.copy(bench.base, bench.folder / "base.pt"))
    (bench.folder / "dict.txt").write_text("\n".join(reversed(lines)) + "\n")
    done = bench.train(data, finetune_from_model=base)
    refused(bench, done, "comes with another dictionary: token 4 is 'w29'", "'w0' in")


@pytest.mark.parametrize(
    "knob, value",
    [("encoder_layers", 3), ("encoder_layers", 1), ("encoder_embed_dim", 32)],
)
def test_base_of_another_architecture(bench, knob, value):
    """What would fit is said, ready to be typed."""
    done = bench.train(**{knob: value})
    flag, base = "--" + knob.replace("_", "-"), TINY[knob]
    refused(bench, done, f"{knob} {value} .the base has {base}", f"roberta_lora without {flag}")
    refused(bench, done, f", or {flag} {base}[.]$")


def test_base_with_fewer_positions(bench):
    done = bench.train(max_positions=50)
    refused(bench, done, r"max_positions 50 .the base has 40.", "or --max-positions 40[.]$")


def test_lora_checkpoint_for_an_adapter_run(bench, trained):
    done = bench.train(arch="roberta_small_adapter", finetune_from_model=trained)
    refused(bench, done, "left over", "lora_")


def test_lora_checkpoint_of_another_rank(bench, trained):
    done = bench.train(lora_rank=4, finetune_from_model=trained)
    refused(bench, done, "Likely cause: .* another value of --peft or --lora-rank")
