"""The file that a run begins from is there, or the run is refused before anything is made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq")

from helpers import PACKAGE  # noqa: E402

from fairseq_peft.checkpoints import start  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402

RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
DEFAULTS = {"restore_file": "checkpoint_last.pt", "finetune_from_model": None}


@pytest.fixture
def check(tmp_path):
    """``check(finetune_from_model="base.pt")``: of a run in ``run``; ``base.pt`` is there."""
    (tmp_path / "base.pt").write_text("")

    def call(**given):
        paths = {k: str(tmp_path / v) if isinstance(v, str) else v for k, v in given.items()}
        flags = {**DEFAULTS, **dict.fromkeys(RESETS, False), **paths}
        start.check(SimpleNamespace(save_dir=str(tmp_path / "run"), **flags))

    return call


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"finetune_from_model": "base.pt"},
        {"restore_file": "base.pt"},
        {"restore_file": "base.pt", "reset_optimizer": True},
        {"continue_once": "base.pt"},
    ],
)
def test_what_is_there_is_taken(check, given):
    check(**given)


def test_path_of_the_tools(tmp_path):
    (tmp_path / "a.pt").write_text("")
    start.check_paths([f"{tmp_path}/a.pt"] * 2)
    with pytest.raises(InputError, match="--path .*b.pt does not exist: expected a checkpoint"):
        start.check_paths([f"{tmp_path}/a.pt", f"{tmp_path}/b.pt"])
    with pytest.raises(InputError, match="is a folder: .* such as .*/checkpoint_best.pt[.]$"):
        start.check_paths([str(tmp_path)])


def test_a_tool_without_its_model_is_one_sentence(fairseq, data_folder, tmp_path):
    """tests/tasks/test_translation.py has fairseq-generate, which begins otherwise."""
    words = ("--task", "sentence_classification", "--criterion", "sentence_classification")
    words += ("--user-dir", PACKAGE, "--cpu", "--batch-size", 4, "--path", tmp_path / "no.pt")
    done = fairseq("validate", data_folder, *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"--path {tmp_path / 'no.pt'} does not exist: expected a checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"finetune_from_model": "no.pt"}, "--finetune-from-model .*no.pt does not exist"),
        ({"restore_file": "no.pt"}, "--restore-file .*no.pt does not exist"),
        ({"continue_once": "no.pt"}, "--continue-once .*no.pt does not exist"),
        ({"finetune_from_model": ""}, "--finetune-from-model .* is a folder"),
        ({"finetune_from_model": "base.pt", "restore_file": "base.pt"}, "exclude each other"),
        ({"finetune_from_model": "base.pt", "reset_meters": True}, "Leave --reset-meters out"),
    ],
)
def test_what_is_not_there_is_said(check, given, said):
    with pytest.raises(InputError, match=said):
        check(**given)


def test_a_run_that_goes_on_needs_no_base(check, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_last.pt").write_text("")
    check(finetune_from_model="no.pt")
    with pytest.raises(InputError, match="--restore-file"):
        check(restore_file="no.pt")


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arch", "flag"),
    [
        ("transformer_lm_lora", "--finetune-from-model"),
        ("transformer_lm_lora", "--restore-file"),
        ("transformer_lm", None),
    ],
)
def test_fairseq_train(fairseq, data_folder, tmp_path, arch, flag):
    """Stock's architectures are none of the plugin's business."""
    done = fairseq(
        *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "language_modeling"),
        *("--arch", arch, "--optimizer", "adam", "--batch-size", 8, "--max-update", 1, "--cpu"),
        *("--decoder-layers", 1, "--decoder-embed-dim", 16, "--decoder-attention-heads", 2),
        *("--num-workers", 0, "--save-dir", tmp_path / "run", "--tokens-per-sample", 12),
        *("--no-save", flag or "--restore-file", "no.pt"),
    )
    if flag is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    assert f"fairseq_peft: error: {flag} no.pt does not exist" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()
