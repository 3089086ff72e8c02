"""The adapter folder that training writes: at each new best, and only then."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from helpers import train_flags

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.runs.choice import Best, Choice  # noqa: E402
from fairseq_peft.tasks.best_adapter import BestAdapter, describe_base  # noqa: E402

ACCURACIES = [0.5, 0.75, 0.625, 0.75, 0.5]


@pytest.fixture(scope="module")
def base(dictionary):
    return adapter_folders.base_state(dictionary)


@pytest.fixture
def keep(dictionary, base, tmp_path):
    """``keep(resumes)``: the keeper of a run's folder, and a model to offer it."""
    words = tmp_path / "words"
    dictionary.save(str(words))
    described = {
        "head_name": "head",
        "labels": ["bad", "good"],
        "input": {"max_tokens": 9, "begin": True, "num_texts": 1},
        "dictionary": {"sha256": "", "num_rows": 35},
    }
    reference = {"path": "base.pt", "sha256": adapter_folder.fingerprint(base)}

    def make(resumes=False, lines=()):
        copies = {"dict.txt": words}
        best = Best(Choice(), lines)
        return BestAdapter(str(tmp_path), described, copies, reference, best, resumes)

    return make


def line(epoch, accuracy):
    numbers = {"accuracy": accuracy, "loss": float("nan")}
    return {"epoch": epoch, "num_updates": 9 * epoch, "subsets": {"valid": numbers}}


def offer(kept, model, line):
    """As a run does: what was measured is decided on, then kept."""
    kept.best.offer(line["subsets"]["valid"]["accuracy"], line["num_updates"])
    kept.offer(model, line)


@pytest.mark.parametrize("restart", range(len(ACCURACIES) + 1))
def test_it_is_the_best_epoch_the_latest_on_ties(dictionary, base, keep, tmp_path, restart):
    """As checkpoint_best.pt, wherever the run was interrupted and taken up again."""
    kept, chosen, lines = keep(), [], []
    for epoch, accuracy in enumerate(ACCURACIES, start=1):
        if epoch == restart + 1 and restart:
            kept = keep(True, lines)
        lines.append(line(epoch, accuracy))
        offer(kept, adapter_folders.perturbed(dictionary, base, seed=epoch), lines[-1])
        chosen.append(adapter_folder.read(tmp_path / "adapter").description["metrics"]["epoch"])
    assert chosen == [1, 2, 2, 4, 4]
    found = adapter_folder.read(tmp_path / "adapter")
    expected = adapter_folders.perturbed(dictionary, base, seed=4).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.tensors.items())
    assert found.description["metrics"]["subsets"]["valid"] == {"accuracy": 0.75, "loss": None}


def test_a_new_run_does_not_look_at_the_folder_of_an_old_one(dictionary, base, keep, tmp_path):
    model = adapter_folders.perturbed(dictionary, base)
    offer(keep(), model, line(1, 0.9))
    offer(keep(), model, line(1, 0.5))
    assert adapter_folder.read(tmp_path / "adapter").description["metrics"]["accuracy"] == 0.5


def test_a_damaged_folder_of_its_own_is_told_and_written_anew(dictionary, base, keep, tmp_path,
                                                              caplog):  # fmt: skip
    model = adapter_folders.perturbed(dictionary, base)
    offer(keep(), model, line(1, 0.9))
    (tmp_path / "adapter" / "dict.txt").write_text("")
    kept = keep(True, [line(1, 0.9)])
    assert any("The next validation writes it anew" in r.getMessage() for r in caplog.records)
    offer(kept, model, line(2, 0.1))
    assert adapter_folder.read(tmp_path / "adapter").description["metrics"]["epoch"] == 2


def test_what_would_be_lost_is_refused_before_training(keep, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        keep()


def test_where_a_run_learns_of_its_base(base, tmp_path):
    own = adapter_folders.save_base(tmp_path / "base.pt", base)
    sha256, state = adapter_folder.fingerprint(base), {"model": base}
    reference = {"path": str(own), "sha256": sha256}

    def start(base, resumes):
        return SimpleNamespace(base=base and str(base), path="", resumes=resumes)

    assert describe_base(start(None, False), None, str(tmp_path)) is None
    assert describe_base(start(own, False), state, str(tmp_path)) == reference
    slim = {"model": base, "base": {**reference, "names": []}}
    assert describe_base(start(None, True), slim, str(tmp_path)) == reference
    changed = {"model": {key: value + 1 for key, value in base.items()}}
    assert describe_base(start(own, True), changed, str(tmp_path)) == reference
    assert describe_base(start(None, True), changed, str(tmp_path)) is None


# ---- By fairseq-train -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def train(fairseq, data_folder, base_checkpoint):
    def run(save_dir, **more):
        given = {"finetune_from_model": base_checkpoint, "from_scratch": None, "lr": 5e-2, **more}
        done = fairseq("train", *train_flags(data_folder, save_dir, **given))
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.end_to_end
def test_training_leaves_the_folder_of_the_best_epoch(train, base_checkpoint, tmp_path, capsys):
    """In one go and in two: the same bytes but for the command; and the best checkpoint's
    tensors."""
    printed = train(tmp_path / "one", max_epoch=4)
    assert f"{tmp_path}/one/adapter: " in printed and "new best of valid" in printed
    assert re.search(r"without the head .*; 4,096 bytes", printed)
    train(tmp_path / "two", max_epoch=2)
    train(tmp_path / "two", max_epoch=4)
    first, second = (adapter_folder.read(tmp_path / name / "adapter") for name in ("one", "two"))
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(second.tensors[n], t) for n, t in first.tensors.items())
    best = torch.load(tmp_path / "one/checkpoint_best.pt", weights_only=True)
    assert all(torch.equal(best["model"][n], t) for n, t in first.tensors.items())
    assert (
        best["extra_state"]["train_iterator"]["epoch"] - 1 == first.description["metrics"]["epoch"]
    )
    for key in ("base", "labels", "input", "model", "method", "head"):
        assert first.description[key] == second.description[key]
    lines = (tmp_path / "one/metrics.jsonl").read_text().splitlines()
    logged = json.loads(lines[first.description["metrics"]["epoch"] - 1])["subsets"]
    assert first.description["metrics"]["subsets"] == logged
    words = ["verify", str(first.folder), "--base", str(base_checkpoint)]
    assert cli.main(words) == 0 and "fits" in capsys.readouterr().out


@pytest.mark.end_to_end
def test_what_the_folder_says_of_the_base_survives_a_run_with_whole_checkpoints(
    train, base_checkpoint, tmp_path
):
    """A resumed run whose base is gone, and whose checkpoints hold it, knows it from the folder."""
    moved = shutil.copy(base_checkpoint, tmp_path / "base.pt")
    train(tmp_path / "run", finetune_from_model=moved, full_checkpoints=True)
    before = adapter_folder.read(tmp_path / "run/adapter").description
    (tmp_path / "base.pt").unlink()
    train(tmp_path / "run", finetune_from_model=None, full_checkpoints=True, max_epoch=3)
    after = adapter_folder.read(tmp_path / "run/adapter").description
    assert before["base"] == after["base"] and not after["complete"]


@pytest.mark.end_to_end
def test_full_fine_tuning_and_no_save(train, tmp_path):
    printed = train(tmp_path / "full", peft="full")
    assert printed.count("holds the whole model, because all of its body trains") == 1
    assert adapter_folder.read(tmp_path / "full/adapter").description["complete"]
    train(tmp_path / "none", no_save=True)
    assert not (tmp_path / "none/adapter").exists()


@pytest.mark.end_to_end
def test_a_folder_that_cannot_be_written_is_one_sentence(
    fairseq, data_folder, base_checkpoint, tmp_path
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/adapter").write_text("a file")
    given = {"finetune_from_model": base_checkpoint, "from_scratch": None}
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **given))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "adapter is a file, where an adapter folder is to be" in done.stderr.splitlines()[-1]
