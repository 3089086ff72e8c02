"""Synthetic run trees: everything the report reads, written in milliseconds."""

import json

import pytest

from fairseq_peft.report.result import summarise, write_result

PARAMETERS = {"full": 23092738, "lora": 329218, "head_only": 263682}


def subset(num_correct, num_examples):
    return {
        "loss": 0.5,
        "num_correct": num_correct,
        "num_examples": num_examples,
        "accuracy": num_correct / num_examples,
        "macro_f1": 0.5,
        "mcc": 0.1,
        "seconds": 2.0,
    }


def epoch_line(epoch, valid, test, loss=0.5, memory=1000):
    """``valid`` right of 400, ``test`` right of 2000; None leaves the subset out."""
    subsets = {"valid": subset(valid, 400)}
    if test is not None:
        subsets["test"] = subset(test, 2000)
    return {
        "epoch": epoch,
        "num_updates": 100 * epoch,
        "lr": 0.001,
        "peak_memory_bytes": memory,
        "train": {
            "loss": loss,
            "num_correct": 900,
            "num_examples": 1600,
            "accuracy": 0.5625,
            "num_tokens": 228000,
            "seconds": 40.0,
            "tokens_per_second": 5700.0,
        },
        "subsets": subsets,
    }


@pytest.fixture
def make_run(tmp_path):
    """make_run(method=..., epochs=[(valid, test), ...], ...) -> the folder of a synthetic run."""

    def make(
        method="full",
        seed=1,
        epochs=((300, 1500), (320, 1600)),
        init="pretrained",
        data="books",
        lr=0.001,
        finish=True,
        **changes,
    ):
        folder = tmp_path / "runs" / data / init / method / f"seed{seed}"
        folder.mkdir(parents=True)
        run = {
            "schema": 1,
            "data": data,
            "init": init,
            "method": method,
            "seed": seed,
            "arch": f"roberta_small_{method}",
            "base": None,
            "method_config": {"rank": 8} if method == "lora" else {},
            "labels": ["0", "1"],
            "rows": {"train": 1600, "valid": 400, "test": 2000},
            "trainable_parameters": PARAMETERS.get(method, 100000),
            "method_parameters": 65536,
            "head_parameters": 263682,
            "total_parameters": 23453954,
            "task_bytes": 4 * PARAMETERS.get(method, 100000),
            "hyperparameters": {"lr": lr, "batch_size": 16, "max_epoch": 2},
            "versions": {"torch": "2.13.0"},
            "device": "cpu",
            "threads": 1,
            "command": "fairseq-train ...",
            **changes,
        }
        (folder / "run.json").write_text(json.dumps(run))
        lines = [
            json.dumps(epoch_line(number, valid, test, loss=1 / number))
            for number, (valid, test) in enumerate(epochs, start=1)
        ]
        (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
        if finish:
            write_result(folder, summarise(folder))
        return folder

    make.root = tmp_path / "runs"
    make.epoch_line = epoch_line
    return make
