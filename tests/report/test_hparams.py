"""HParams: in the run's own folder, once, and readable by TensorBoard."""

import json
import os

from fairseq_peft.cli import main
from fairseq_peft.report.tensorboard import hyperparameters, write_hparams
from fairseq_peft.runs.log import RunLog


def read(folder):
    """tag -> plugin data or number, of every event file in ``folder``."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import metadata
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    content = value.metadata.plugin_data.content
                    found["start"] = metadata.parse_session_start_info_plugin_data(content)
                elif not value.tag.startswith("_hparams_"):
                    found[value.tag] = float(make_ndarray(value.tensor))
    return found


def test_flat_names():
    result = {
        "method": "lora",
        "seed": 1,
        "base": None,
        "hyperparameters": {"lr": 0.001, "adam_betas": [0.9, 0.98]},
        "method_config": {"rank": 8, "targets": None, "bias": False},
    }
    assert hyperparameters(result) == {
        "method": "lora",
        "seed": 1,
        "lr": 0.001,
        "adam_betas": "[0.9, 0.98]",
        "lora.rank": 8,
        "lora.bias": False,
    }


def test_result_writes_them_into_the_run(make_run):
    folder = make_run("lora", finish=False)
    assert main(["result", str(folder)]) == 0
    found = read(folder)
    assert found["start"].hparams["lora.rank"].number_value == 8
    assert found["start"].hparams["method"].string_value == "lora"
    assert abs(found["final/test_accuracy"] - 0.8) < 1e-6
    assert [path for path in folder.iterdir() if path.is_dir()] == []


def test_a_path_that_tensorboard_does_not_take_is_left_out(make_run, tmp_path):
    """Python has a surrogate for a byte of a path that is no UTF-8; the record is there."""
    odd = tmp_path / os.fsdecode(b"r\xff")
    folder = make_run(finish=False).rename(odd)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = RunLog(str(folder), {**json.loads((folder / "run.json").read_text()), "dir": str(odd)})
    log.epoch(lines[0])
    assert json.loads((folder / "run.json").read_text())["dir"] == str(odd)
    assert main(["result", str(folder)]) == 0
    assert (folder / "result.json").is_file() and not list(folder.glob("events*"))


def test_written_again_it_replaces(make_run):
    folder = make_run()
    other = folder / "events.out.tfevents.1.host.2.3"  # of training
    other.write_bytes(b"")
    result = json.loads((folder / "result.json").read_text())
    first, second = (write_hparams(folder, result) for _ in range(2))
    assert second.exists() and other.exists()
    assert first == second or not first.exists()
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
