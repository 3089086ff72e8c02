"""``fairseq-peft average``: several checkpoints of a run in, one adapter folder out."""

from __future__ import annotations

import json
import re

import pytest
from helpers import train_flags
from verbs import refused
from verbs import run as verb

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from kinds import write_numbers  # noqa: E402
from runs import load, metrics, without_clocks  # noqa: E402

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.checkpoints import slim  # noqa: E402
from fairseq_peft.combining import average  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.models import folder  # noqa: E402
from fairseq_peft.runs import predictions  # noqa: E402
from fairseq_peft.runs.choice import Choice  # noqa: E402


def line(update, value):
    return {"epoch": update, "num_updates": update, "subsets": {"valid": {"mcc": value}}}


def test_the_best_are_those_that_choose_and_the_latest_on_ties():
    lines = [line(1, -0.5), line(2, 0.1), line(3, -0.2), line(4, 0.1), line(5, 0.1)]
    assert average.best(Choice("mcc"), lines, 2) == [lines[3], lines[4]]
    assert average.best(Choice("mcc"), lines, 4) == lines[1:]
    with pytest.raises(InputError, match="Only 1 validations have a finite mcc"):
        average.best(Choice("mcc"), [lines[0], line(2, float("nan"))], 2)


def test_what_has_no_mean_is_refused(tmp_path):
    """The ranks that AdaLoRA keeps, while it still takes some away."""
    paths = []
    for i, kept in enumerate(([True, True], [True, False])):
        state = {"model": {"kept": torch.tensor(kept)}, "optimizer_history": [], "extra_state": {}}
        paths.append(tmp_path / f"checkpoint{i}.pt")
        torch.save(state, paths[-1])
    with pytest.raises(InputError, match=r"kept differs between checkpoint0\.pt and checkpoint1"):
        average.mean(paths, ["kept"])
    assert torch.equal(average.mean(paths[:1] * 2, ["kept"])["kept"], torch.tensor([True, True]))


# ---- Of a run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(fairseq, data_folder, base_checkpoint, tmp_path_factory):
    """A run of five epochs that has kept its last two and its best three."""
    save_dir = tmp_path_factory.mktemp("run") / "run"
    given = {"finetune_from_model": base_checkpoint, "from_scratch": None, "lr": 3e-2}
    given.update(max_epoch=5, keep_last_epochs=2, keep_best_checkpoints=3)
    given.update(no_epoch_checkpoints=None, best_checkpoint_metric="mcc")
    done = fairseq("train", *train_flags(data_folder, save_dir, **given))
    assert done.returncode == 0, done.stderr
    assert cli.main(["result", str(save_dir)]) == 0
    return save_dir


@pytest.mark.end_to_end
def test_scores_are_those_that_training_logged(trained, data_folder):
    """Of one checkpoint, without an average."""
    kept = average.checkpoints(trained)
    for at in metrics(trained):
        if at["num_updates"] in kept:
            loaded = average.load(kept[at["num_updates"]], str(data_folder), None)
            found, rows = average.score(*loaded, ["valid", "test"], Choice("mcc"))
            assert found == without_clocks(at["subsets"])
            assert rows.num_correct("test") == at["subsets"]["test"]["num_correct"]


@pytest.mark.end_to_end
def test_a_run_on_numbers(fairseq, tmp_path):
    data = write_numbers(tmp_path / "data")
    more = {"max_epoch": 2, "keep_best_checkpoints": 2, "best_checkpoint_metric": "spearman"}
    done = fairseq("train", *train_flags(data, tmp_path / "run", lr=3e-2, **more))
    assert done.returncode == 0, done.stderr
    kept = average.checkpoints(tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert list(kept) == [at["num_updates"] for at in lines]
    loaded = average.load(kept[lines[0]["num_updates"]], str(data), None)
    found, _ = average.score(*loaded, ["valid", "test"], Choice("spearman"))
    for name, logged in without_clocks(lines[0]["subsets"]).items():
        assert found[name] == pytest.approx(logged, abs=1e-6)
    verb("average", tmp_path / "run", "--best", 2, "--out", tmp_path / "mean")
    assert not (tmp_path / "mean" / "result.json").exists()  # the run has none
    metric = adapter_folder.read(tmp_path / "mean" / "adapter").description["metrics"]
    assert metric["value"] == round(metric["subsets"]["valid"]["spearman"], 6)


@pytest.mark.end_to_end
@pytest.mark.parametrize(("which", "number"), [("last", 2), ("best", 3)])
def test_the_folder_holds_the_mean_of_the_parameters(
    trained, base_checkpoint, tmp_path, capsys, caplog, monkeypatch, which, number
):
    out = tmp_path / "mean"
    capsys.readouterr()
    monkeypatch.setattr(average, "EVERY", -1)  # tell it at each batch
    verb("average", trained, f"--{which}", number, "--out", out)
    printed = capsys.readouterr().out
    told = [one.message for one in caplog.records if one.name == average.__name__]
    assert "scoring valid" in told[0] and "scoring test" in "".join(told)
    assert " of " in told[1]
    lines = metrics(trained)
    expected = lines[-2:]
    if which == "best":
        order = sorted(lines, key=lambda at: (at["subsets"]["valid"]["mcc"], at["num_updates"]))
        expected = sorted(order[-3:], key=lambda at: at["num_updates"])
    updates = [at["num_updates"] for at in expected]
    print([(at["num_updates"], at["subsets"]["valid"]["mcc"]) for at in lines])
    found = adapter_folder.read(out / "adapter")
    assert found.description["origin"]["updates"] == updates
    paths = {}
    for path in trained.glob("checkpoint*.pt"):
        paths[load(path)["optimizer_history"][-1]["num_updates"]] = path
    states = [load(paths[update])["model"] for update in updates]
    for name, tensor in found.tensors.items():
        wanted = torch.stack([state[name].double() for state in states]).mean(0)
        assert torch.allclose(tensor.double(), wanted, rtol=0, atol=1e-7), name
        assert not torch.equal(tensor, states[-1][name])
    # Of the factors, which is not that of their products.
    name = next(n[: -len("A")] for n in found.tensors if n.endswith("lora_A"))
    products = torch.stack([state[name + "B"] @ state[name + "A"] for state in states]).mean(0)
    assert not torch.allclose(found.tensors[name + "B"] @ found.tensors[name + "A"], products)

    # It stands on its base as any other, and predicts what was scored.
    base = slim.read(str(base_checkpoint))["model"]
    model = folder.load(found, base)
    assert all(torch.equal(model.state_dict()[n], tensor) for n, tensor in found.tensors.items())
    result = json.loads((out / "result.json").read_text())
    assert (result["method"], result["averaged"]) == (f"lora-{which}{number}", updates)
    assert (result["curve"], result["best_test_epoch"], result["best_test_accuracy"]) == (
        [],
        None,
        None,
    )
    valid, test = (found.description["metrics"]["subsets"][name] for name in ("valid", "test"))
    assert (result["best_value"], result["test_mcc"]) == (round(valid["mcc"], 6), test["mcc"])
    rows = predictions.read(out / predictions.NAME)
    assert rows.num_correct("test") == test["num_correct"] == round(result["test_accuracy"] * 21)
    assert f"mcc on valid: {valid['mcc']:.4f}; the best of them alone" in printed


@pytest.mark.end_to_end
def test_the_average_is_a_row_of_the_report(trained, tmp_path, capsys):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "single").symlink_to(trained)
    verb("average", trained, "--best", 2, "--out", runs / "mean")
    (runs / "single").unlink()
    (runs / "single").mkdir()
    for name in ("result.json", predictions.NAME):
        (runs / "single" / name).write_bytes((trained / name).read_bytes())
    capsys.readouterr()
    verb("inspect", runs / "mean" / "adapter")
    assert re.search(r"^  which +best$", capsys.readouterr().out, re.MULTILINE)
    verb("report", runs, "--out", runs / "report")
    rows = json.loads((runs / "report" / "report.json").read_text())
    assert sorted(row["method"] for row in rows) == ["lora", "lora-best2"]
    assert "Left out" not in capsys.readouterr().out


@pytest.mark.end_to_end
def test_what_was_not_kept_is_said(trained, tmp_path, capsys):
    out = tmp_path / "mean"
    capsys.readouterr()
    told = refused(capsys, "average", trained, "--last", 5, "--out", out)
    assert "keeps no checkpoint of 9" in told and "--keep-last-epochs 5" in told
    assert "has made 5 validations" in refused(
        capsys, "average", trained, "--best", 6, "--out", out
    )
    assert "of 2 or more" in refused(capsys, "average", trained, "--best", 1, "--out", out)
    assert (
        "has no metrics.jsonl" in refused(capsys, "average", tmp_path, "--best", 2, "--out", out)
        or not (tmp_path / "adapter").exists()
    )
    told = refused(capsys, "average", trained, "--last", 2, "--out", out, "--data", tmp_path)
    assert "does not exist. Say where it is: --data" in told
    assert not out.exists()
    for place in (trained, trained.parent):
        told = refused(capsys, "average", trained, "--best", 2, "--out", place, "--force")
        assert "holds the run itself" in told
