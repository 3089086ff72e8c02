"""docs/fairseq-flags.md: what people turn on in fairseq works with LoRA, or is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from helpers import PACKAGE, ROOT, TINY_FLAGS, train_flags
from runs import metrics, validate_flags, validated

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.fairseq_fixes import processes  # noqa: E402

TABLE = (ROOT / "docs" / "fairseq-flags.md").read_text(encoding="utf-8")
END_TO_END = pytest.mark.end_to_end


def given(base, **more):
    """The flags of a run without dropout, which each process would draw for itself."""
    flags = {"finetune_from_model": base, "from_scratch": None, "lr": 1e-2, "max_epoch": 2}
    return {**flags, "arch": "roberta_small_lora", "dropout": 0, "attention_dropout": 0, **more}


def of_run(run):
    """What a run found, without times, and the tensors of its adapter folder."""
    found = []
    for line in metrics(run):
        subsets = {
            name: {key: value for key, value in numbers.items() if key != "seconds"}
            for name, numbers in line["subsets"].items()
        }
        found.append({"update": line["num_updates"], "train": line["train"]["loss"], **subsets})
    return found, adapter_folder.read(run / "adapter").tensors


def same(one, other, exact=True):
    (lines, tensors), (others, other_tensors) = of_run(one), of_run(other)
    for line, wanted in zip(lines, others):
        assert line["update"] == wanted["update"]
        assert line["train"] == pytest.approx(wanted["train"], abs=0 if exact else 1e-6)
        for subset in ("valid", "test"):
            for name, value in line[subset].items():
                tolerance = 0 if exact or name.startswith("num_") else 1e-6
                assert value == pytest.approx(wanted[subset][name], abs=tolerance), name
    assert len(lines) == len(others) and tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, other_tensors[name], rtol=0, atol=0 if exact else 1e-5, msg=name
        )


@pytest.fixture(scope="module")
def plain(fairseq, data_folder, base_checkpoint, tmp_path_factory):
    """A run that nothing was turned on for."""
    run = tmp_path_factory.mktemp("flags") / "plain"
    done = fairseq("train", *train_flags(data_folder, run, **given(base_checkpoint)))
    assert done.returncode == 0, done.stderr
    return run


#: Flag -> its value: the same run, to the last bit but for sums in another order.
UNCHANGED = {
    "checkpoint_activations": True,
    "num_workers": 2,
    "batch_size_valid": 3,
    "keep_best_checkpoints": 1,
}
#: Flag -> (value, what is said).
REFUSED = {
    "amp": (True, "--amp does nothing on a CPU"),
    "store_ema": (True, "--store-ema keeps a second copy of the whole model"),
    "bf16": (True, "--precision bf16"),
    "max_valid_steps": (3, "--max-valid-steps 3 would leave rows out"),
}


def test_each_flag_has_a_row():
    flags = {name.replace("_", "-") for name in (*UNCHANGED, *REFUSED)}
    flags |= {"update-freq", "distributed-world-size", "ddp-backend", "lr-scheduler"}
    missing = [flag for flag in sorted(flags) if f"`--{flag}" not in TABLE]
    assert missing == []


@END_TO_END
@pytest.mark.parametrize("flag", UNCHANGED)
def test_it_changes_nothing(plain, fairseq, data_folder, base_checkpoint, tmp_path, flag):
    words = train_flags(
        data_folder, tmp_path / "run", **given(base_checkpoint, **{flag: UNCHANGED[flag]})
    )
    done = fairseq("train", *words)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", plain, exact=flag != "batch_size_valid")  # sums in another order


@END_TO_END
@pytest.mark.parametrize("flag", REFUSED)
def test_it_is_refused(fairseq, data_folder, base_checkpoint, tmp_path, flag):
    value, said = REFUSED[flag]
    words = train_flags(data_folder, tmp_path / "run", **given(base_checkpoint, **{flag: value}))
    done = fairseq("train", *words)
    assert done.returncode != 0 and said in done.stderr + done.stdout
    assert not (tmp_path / "run" / "adapter").exists()


@END_TO_END
@pytest.mark.parametrize("flag", ["amp", "store_ema", "bf16"])
def test_it_is_refused_with_fairseqs_own_tasks_too(fairseq, data_folder, tmp_path, flag):
    done = fairseq(
        *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_small", *TINY_FLAGS),
        *("--optimizer", "peft_adamw", "--batch-size", 8, "--save-dir", tmp_path / "run", "--cpu"),
        "--" + flag.replace("_", "-"),
    )
    assert done.returncode != 0 and REFUSED[flag][1] in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@END_TO_END
@pytest.mark.parametrize("method", ["lora", "prompt", "adapter", "prefix", "full"])
def test_activations_that_are_computed_again_give_the_same_gradients(build, batch, method):
    """With dropout, whose numbers are drawn again as they were; and with frozen layers below."""
    found = []
    for again in (False, True):
        model = build(method, checkpoint_activations=again, dropout=0.3, attention_dropout=0.2)
        encoder = model.encoder.sentence_encoder
        assert encoder.checkpoint_activations is again
        model.train()
        torch.manual_seed(5)
        scores = model(batch, features_only=True, classification_head_name="head")[0]
        scores.float().logsumexp(-1).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 1
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


# ---- Several processes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(fairseq, data_folder, base_checkpoint, tmp_path_factory):
    """The run of one process whose updates have as many rows as those of two."""
    run = tmp_path_factory.mktemp("one") / "run"
    words = train_flags(data_folder, run, **given(base_checkpoint, update_freq=2))
    done = fairseq("train", *words)
    assert done.returncode == 0, done.stderr
    return run


def environment():
    kept = {key: value for key, value in os.environ.items() if key not in processes.TORCHRUN}
    return {**kept, "OMP_NUM_THREADS": "1"}


@END_TO_END
@pytest.mark.parametrize("launcher", ["fairseq-train", "torchrun"])
def test_two_processes_with_a_base_are_one_run(
    one_process, fairseq, data_folder, base_checkpoint, tmp_path, launcher
):
    """The plain command: as many rows an update, the same metrics, adapter and files."""
    flags = given(base_checkpoint, distributed_world_size=2)
    words = list(map(str, train_flags(data_folder, tmp_path / "run", **flags)))
    if launcher == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", "2", "-m", "fairseq_cli.train"]
        done = subprocess.run([*start, *words], env=environment(), capture_output=True, text=True)
    else:
        done = fairseq("train", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    same(tmp_path / "run", one_process, exact=False)
    names = [
        sorted(re.sub(r"\d{6,}.*", "", p.name) for p in run.iterdir())
        for run in (tmp_path / "run", one_process)
    ]
    assert names[0] == names[1]
    done = fairseq(
        "validate", *validate_flags(data_folder, tmp_path / "run" / "checkpoint_last.pt")
    )
    last = metrics(tmp_path / "run")[-1]["subsets"]["test"]
    assert validated(done.stdout)["test"]["accuracy"] == pytest.approx(last["accuracy"], abs=2e-6)


@END_TO_END
def test_a_process_that_fails_is_an_error(fairseq, data_folder, base_checkpoint, tmp_path):
    flags = given(base_checkpoint, distributed_world_size=2, peft_targets="query")
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **flags))
    assert done.returncode != 0 and "matches no module" in done.stderr + done.stdout


def test_what_the_first_process_read_reaches_the_others(monkeypatch):
    """Whatever a checkpoint holds: namespaces, and fairseq's placeholders for tensors."""
    import argparse

    sent = []
    monkeypatch.setattr(
        processes.utils, "broadcast", lambda tensor, src, group: sent.append(tensor)
    )
    monkeypatch.setattr(processes.utils, "get_rank", lambda group: 0)
    tensors = []
    state = {"args": argparse.Namespace(arch="x"), "model": {"a": torch.ones(2)}, "n": [1, None]}
    state = processes.utils._split_tensors_from_obj(state, tensors)
    device = torch.device("cpu")
    processes._broadcast_object(state, 0, None, device)
    length, content = sent

    def receive(tensor, src, group):
        tensor.copy_(length if tensor.numel() == 1 else content)

    monkeypatch.setattr(processes.utils, "broadcast", receive)
    monkeypatch.setattr(processes.utils, "get_rank", lambda group: 1)
    found = processes._broadcast_object(None, 0, None, device)
    assert found["args"] == state["args"] and found["model"] == state["model"]


# ---- reduce_lr_on_plateau ------------------------------------------------------------------------


@END_TO_END
def test_reduce_lr_on_plateau_works_and_goes_on(fairseq, data_folder, base_checkpoint, tmp_path):
    more = {"lr_scheduler": "reduce_lr_on_plateau", "lr_shrink": 0.5, "lr": 0.05}
    for name, epochs in (("one", 5), ("two", 2), ("two", 5)):
        flags = given(base_checkpoint, **{**more, "max_epoch": epochs})
        done = fairseq("train", *train_flags(data_folder, tmp_path / name, **flags))
        assert done.returncode == 0, done.stderr
    rates = [[line["lr"] for line in metrics(tmp_path / name)] for name in ("one", "two")]
    assert min(rates[0]) < 0.05
    same(tmp_path / "two", tmp_path / "one")


def test_the_table_says_what_is_refused():
    for flag in REFUSED:
        row = next(line for line in TABLE.splitlines() if f"`--{flag.replace('_', '-')}" in line)
        assert "refused" in row
