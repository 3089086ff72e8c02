"""The main job by the real command lines: train, evaluate in a fresh process, go on, repeat."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import (
    PACKAGE,
    TINY_FLAGS,
    fairseq_command,
    random_rows,
    script,
    train_flags,
    write_data,
)

from fairseq_peft.checkpoints import slim
from fairseq_peft.methods.lora import LoRAConfig
from fairseq_peft.runs import predictions

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from runs import (  # noqa: E402
    LAST,
    all_predictions,
    load,
    metrics,
    same,
    validate_flags,
    validated,
    without_clocks,
)

EPOCHS = 2
LR = 1e-1  # at lower ones two epochs of the tiny model may end in one class


@pytest.fixture(scope="module")
def flags(data_folder, base_checkpoint):
    """``flags(save_dir, ...)``: LoRA from the base; dropout is on, so that resuming must get it
    right."""
    own = {"max_epoch": EPOCHS, "lr": LR, "batch_size": 4}
    own.update(dropout=0.05, attention_dropout=0.05, from_scratch=None)

    def make(save_dir, **more):
        more = {**own, "finetune_from_model": base_checkpoint, **more}
        return train_flags(data_folder, save_dir, **more)

    return make


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    """The save directory of one run, trained by ``python -m fairseq_cli.train`` itself."""
    folder = tmp_path_factory.mktemp("run")
    done = fairseq_command("train", *flags(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return folder


def test_validate_in_a_fresh_process_gives_what_training_logged(run, data_folder):
    """To the last example: 21 rows, in batches of 4 and of 8, none dropped."""
    done = fairseq_command("validate", *validate_flags(data_folder, run / "checkpoint_last.pt"))
    assert done.returncode == 0, done.stderr[-3000:]
    scores = validated(done.stdout)
    logged = metrics(run)[-1]["subsets"]
    assert set(scores) == set(logged) == {"valid", "test"}
    for subset, numbers in logged.items():
        assert numbers["num_examples"] == 21
        assert round(scores[subset]["accuracy"] * 21) == numbers["num_correct"]
        for name in ("loss", "accuracy", "macro_f1", "mcc"):
            assert scores[subset][name] == pytest.approx(numbers[name], abs=1e-6), (subset, name)
    # A model that has collapsed to one class would agree with anything.
    assert any(numbers["mcc"] != 0 for numbers in logged.values())


def test_predictions_are_the_rows_that_metrics_count(run, data_folder):
    for line in metrics(run):
        rows = predictions.read(predictions.path_of(run, line["num_updates"]))
        assert rows.epoch == line["epoch"] and list(rows.target) == list(line["subsets"])
        for subset, numbers in line["subsets"].items():
            assert rows.num_correct(subset) == numbers["num_correct"]


def test_best_checkpoint_is_that_of_the_best_valid_epoch(run, data_folder, fairseq):
    lines = metrics(run)
    best = max(line["subsets"]["valid"]["accuracy"] for line in lines)
    done = fairseq("validate", *validate_flags(data_folder, run / "checkpoint_best.pt", "valid"))
    assert done.returncode == 0, done.stderr
    assert validated(done.stdout)["valid"]["accuracy"] == pytest.approx(best, abs=1e-6)


def test_run_json_and_metrics_have_the_documented_schema(run, data_folder, base_checkpoint):
    described = json.loads((run / "run.json").read_text())
    assert described["schema"] == 1 and described["data"] == "tiny"
    assert (described["init"], described["base"]) == ("pretrained", str(base_checkpoint))
    assert (described["method"], described["seed"]) == ("lora", 1)
    assert described["arch"] == "roberta_small_lora"
    assert described["method_config"] == asdict(LoRAConfig())
    assert described["method_config"]["rank"] == 8
    assert described["labels"] == ["bad", "good"]
    assert described["rows"] == {"train": 67, "valid": 21, "test": 21}
    counts = [described[f"{part}_parameters"] for part in ("method", "head", "trainable", "total")]
    assert counts[:3] == [1024, 306, 1330] and counts[3] > 5000
    assert described["task_bytes"] == 4 * 1330
    knobs = described["hyperparameters"]
    assert (knobs["lr"], knobs["batch_size"], knobs["max_epoch"]) == (LR, 4, EPOCHS)
    assert set(described["versions"]) == {"fairseq_peft", "torch", "fairseq"}
    assert described["device"] == "cpu" and described["threads"] == 1
    assert "--arch roberta_small_lora" in described["command"]

    lines = metrics(run)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["num_updates"] for line in lines] == [17, 34]  # ceil(67 / 4) an epoch
    num_tokens = sum(len(words) + 2 for words, _ in random_rows()["train"])
    for line in lines:
        assert set(line) == {"epoch", "num_updates", "lr", "peak_memory_bytes", "train", "subsets"}
        assert line["lr"] == LR and 10**7 < line["peak_memory_bytes"] < 10**11
        train = line["train"]
        assert train["num_examples"] == 67 and train["num_tokens"] == num_tokens
        assert train["accuracy"] == train["num_correct"] / 67
        assert train["tokens_per_second"] == pytest.approx(num_tokens / train["seconds"])
        assert 0 < train["seconds"] < 60
        for numbers in line["subsets"].values():
            assert set(numbers) == {
                *("loss", "num_correct", "num_examples", "accuracy", "macro_f1", "mcc", "seconds")
            }


def test_tensorboard_shows_the_same_numbers(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run))
    events.Reload()
    lines = metrics(run)
    tags = {"learning_rate": lambda line: line["lr"]}
    for subset in ("valid", "test"):
        for name in ("accuracy", "loss", "macro_f1", "mcc"):
            tags[f"{name}/{subset}"] = lambda line, s=subset, n=name: line["subsets"][s][n]
    for name in ("accuracy", "loss", "tokens_per_second"):
        tags[f"{name}/train"] = lambda line, n=name: line["train"][n]
    assert set(tags) <= set(events.Tags()["scalars"])
    for tag, number in tags.items():
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(line["num_updates"], pytest.approx(number(line), rel=1e-6)) for line in lines]
        assert shown == expected, tag


def test_checkpoints_need_no_code_to_open(run):
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        unsafe = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", lambda path: [])
        assert unsafe(run / name) == []
        assert load(run / name)["task_state"]["labels"] == ["bad", "good"]


def test_frozen_tensors_are_the_base_bit_for_bit(run, base_checkpoint):
    base, trained = (slim.read(path)["model"] for path in (base_checkpoint, run / LAST))
    assert all(torch.equal(trained[key], value) for key, value in base.items())
    moved = [key for key in trained if key.endswith("lora_B")]
    assert len(moved) == 4 and all(trained[key].abs().max() > 0 for key in moved)


@pytest.mark.parametrize("whole", [False, True], ids=["slim", "full-checkpoints"])
def test_interrupted_run_goes_on_to_the_same_bits(
    run, flags, fairseq, base_checkpoint, tmp_path, whole
):
    """1 + 1 epochs equal 2. Whole checkpoints need the base at the first launch alone."""
    base = shutil.copy(base_checkpoint, tmp_path / "base.pt")
    parts = tmp_path / "parts"
    more = {"finetune_from_model": base, "full_checkpoints": whole}
    done = fairseq("train", *flags(parts, max_epoch=1, **more))
    assert done.returncode == 0, done.stderr
    if whole:
        os.remove(base)
    done = fairseq("train", *flags(parts, **more))
    assert done.returncode == 0, done.stderr
    assert same(run / LAST, parts / LAST, whole=True)
    assert same(run / LAST, parts / LAST) != whole
    assert without_clocks(metrics(parts)) == without_clocks(metrics(run))
    assert all_predictions(parts) == all_predictions(run)
    again = json.loads((parts / "run.json").read_text())
    assert (again["init"], again["base"]) == ("pretrained", str(base))
    # Not even told where it started from, a resumed run does not call itself a scratch run.
    done = fairseq("train", *flags(parts, finetune_from_model=None, max_epoch=3))
    assert done.returncode == 0, done.stderr
    again = json.loads((parts / "run.json").read_text())
    assert (again["init"], again["base"]) == ("pretrained", str(base))
    assert [line["epoch"] for line in metrics(parts)] == [1, 2, 3]


def test_run_stopped_in_mid_epoch_goes_on_to_the_same_bits(run, flags, fairseq, tmp_path):
    done = fairseq("train", *flags(tmp_path, max_update=22))
    assert done.returncode == 0, done.stderr
    done = fairseq("train", *flags(tmp_path))
    assert done.returncode == 0, done.stderr
    assert same(run / "checkpoint_last.pt", tmp_path / "checkpoint_last.pt")
    first, last = metrics(run)[-1], metrics(tmp_path)[-1]
    assert without_clocks(first) == without_clocks(last)
    # Speed counts what this launch did: 12 of the epoch's 17 updates.
    assert (
        last["train"]["tokens_per_second"] < last["train"]["num_tokens"] / last["train"]["seconds"]
    )


def test_same_seed_twice_is_the_same_bits_and_another_seed_is_not(run, flags, fairseq, tmp_path):
    for name, seed in (("same", 1), ("other", 2)):
        done = fairseq("train", *flags(tmp_path / name, seed=seed))
        assert done.returncode == 0, done.stderr
    assert same(run / "checkpoint_last.pt", tmp_path / "same/checkpoint_last.pt")
    assert not same(run / "checkpoint_last.pt", tmp_path / "other/checkpoint_last.pt")
    assert without_clocks(metrics(run)) == without_clocks(metrics(tmp_path / "same"))


SPY = """
import json, fairseq_peft
from fairseq_peft.criterions.sentence_classification import SentenceClassificationCriterion as Spied
forward = Spied.forward

def spy(self, model, sample, reduce=True):
    if model.training:
        with open("ids.jsonl", "a") as file:
            file.write(json.dumps(sample["id"].tolist()) + "\\n")
    return forward(self, model, sample, reduce)

Spied.forward = spy
"""


def test_methods_share_the_order_of_batches(fairseq, tmp_path):
    """At one seed, batch for batch, also where a soft prompt leaves less room for long rows."""
    data = write_data(tmp_path / "data", random_rows(longest=60), ["bad", "good"])
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy/__init__.py").write_text(SPY)
    orders = {}
    for method, seed in (("full", 1), ("lora", 1), ("prompt", 1), ("full", 2)):
        flags = train_flags(data, tmp_path / "run", f"roberta_small_{method}", seed=seed)
        done = fairseq("train", *flags, "--no-save", "--user-dir", tmp_path / "spy", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "ids.jsonl").read_text().splitlines()
        orders[method, seed] = [json.loads(line) for line in lines]
        (tmp_path / "ids.jsonl").unlink()
    assert sorted(sum(orders["full", 1], [])) == list(range(67))
    assert orders["full", 1] == orders["lora", 1] == orders["prompt", 1]
    assert orders["full", 1] != orders["full", 2]


TWO_PROCESSES = """
import os, sys
from fairseq_cli.train import cli_main
rank = 0 if os.fork() else 1
sys.argv = ["fairseq-train", *{argv!r}, "--distributed-rank", str(rank)]
cli_main()
if rank == 0:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_two_processes_evaluate_every_row_once(fairseq, data_folder, tmp_path):
    """3 batches for 2 processes: the one that gets none must not count its dummy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    words = train_flags(data_folder, tmp_path, distributed_world_size=2)
    words += ["--distributed-init-method", address, "--distributed-backend", "gloo"]
    words += ["--distributed-no-spawn", "--ddp-backend", "legacy_ddp"]
    done = fairseq("python", TWO_PROCESSES.format(argv=words))
    assert done.returncode == 0, done.stderr
    (line,) = metrics(tmp_path)  # one process writes
    assert line["train"]["num_examples"] == 67 and line["num_updates"] == 5
    rows = predictions.read(predictions.path_of(tmp_path, line["num_updates"]))
    for subset, numbers in line["subsets"].items():
        assert len(rows.target[subset]) == 21
        assert rows.num_correct(subset) == numbers["num_correct"]
    done = fairseq("validate", *validate_flags(data_folder, tmp_path / "checkpoint_last.pt"))
    for subset, numbers in line["subsets"].items():
        assert numbers["num_examples"] == 21
        alone = validated(done.stdout)[subset]
        for name in ("loss", "accuracy", "macro_f1", "mcc"):
            assert alone[name] == pytest.approx(numbers[name], abs=2e-6), (subset, name)


def test_masked_lm_trains_the_method_alone(fairseq, data_folder, base_checkpoint, tmp_path):
    """fairseq's own task with --peft: the base and its LM head stay, bit for bit."""
    done = fairseq(
        *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_small", "--peft", "lora", *TINY_FLAGS),
        *("--tokens-per-sample", 40, "--batch-size", 8, "--finetune-from-model", base_checkpoint),
        *("--optimizer", "peft_adamw", "--lr", 1e-2, "--max-update", 3, "--num-workers", 0),
        *("--save-dir", tmp_path, "--no-epoch-checkpoints", "--log-format", "simple", "--cpu"),
    )
    assert done.returncode == 0, done.stderr
    base, trained = load(base_checkpoint)["model"], load(tmp_path / "checkpoint_last.pt")["model"]
    assert all(torch.equal(trained[key], value) for key, value in base.items())
    added = set(trained) - set(base)
    assert len(added) == 8 and all(trained[key].abs().max() > 0 for key in added)


SHARED = os.environ.get("FAIRSEQ_PEFT_SHARED", "")


@pytest.mark.skipif(not SHARED, reason="FAIRSEQ_PEFT_SHARED is not set")
def test_book_reviews(fairseq, python, tmp_path):
    """The real data and checkpoint, for a few updates: every row of valid is evaluated, twice."""
    model, raw = Path(SHARED) / "models/roberta_small_fr", tmp_path / "raw"
    raw.mkdir()
    sizes = {"train": 48, "valid": 32, "test": 8}  # of thousands
    for split, size in sizes.items():
        for part in ("review", "label"):
            lines = (Path(SHARED) / f"data/cls-books/{split}.{part}").read_bytes().split(b"\n")[:-1]
            few = lines[:: len(lines) // size][:size]  # of both classes
            (raw / f"{split}.{part}").write_bytes(b"\n".join(few) + b"\n")
    done = script(
        *("prepare_data.sh", raw, "books"),
        SPM=model / "sentencepiece.bpe.model",
        DICT=model / "dict.txt",
        DATA_BIN=tmp_path,
        PYTHON=python,
    )
    assert done.returncode == 0, done.stderr
    words = [tmp_path / "books", "--user-dir", PACKAGE, "--arch", "roberta_small_lora"]
    words += ["--task", "sentence_classification", "--criterion", "sentence_classification"]
    words += ["--finetune-from-model", model / "model.pt", "--optimizer", "peft_adamw"]
    words += ["--lr", "1e-3", "--batch-size", 8, "--max-epoch", 1, "--max-update", 4]
    words += ["--valid-subset", "valid", "--save-dir", tmp_path / "run"]
    words += ["--no-epoch-checkpoints", "--num-workers", 0, "--cpu", "--log-format", "simple"]
    done = fairseq("train", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert described["rows"] == {"train": sizes["train"], "valid": sizes["valid"]}
    assert (described["method_parameters"], described["head_parameters"]) == (65_536, 263_682)
    logged = metrics(tmp_path / "run")[-1]["subsets"]["valid"]
    assert logged["num_examples"] == sizes["valid"]
    checkpoint = tmp_path / "run/checkpoint_last.pt"
    done = fairseq("validate", *validate_flags(tmp_path / "books", checkpoint, "valid"))
    assert done.returncode == 0, done.stderr[-3000:]
    scores = validated(done.stdout)["valid"]
    assert round(scores["accuracy"] * sizes["valid"]) == logged["num_correct"]
    assert scores["macro_f1"] == pytest.approx(logged["macro_f1"], abs=1e-6)
