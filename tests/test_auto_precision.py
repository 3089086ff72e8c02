"""What --precision auto means, how often it is measured, and that a run says what ran."""

from __future__ import annotations

import json
import threading

import pytest
from helpers import TINY_FLAGS

torch = pytest.importorskip("torch")

from fairseq_peft import Classifier, precision  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402


@pytest.fixture
def speed(monkeypatch, tmp_path):
    """``speed(2.0)``: a machine on which bf16 is so much faster; the times it was measured."""
    measured = []
    monkeypatch.delenv(precision.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def set_speed(value):
        def measure(cuda):
            measured.append(cuda)
            return value

        monkeypatch.setattr(precision, "measure", measure)
        return measured

    return set_speed


@pytest.mark.parametrize(("ratio", "expected"), [(2.0, "bf16"), (1.1, "fp32"), (0.02, "fp32")])
def test_auto_is_the_faster_one_and_measured_once(speed, ratio, expected):
    measured = speed(ratio)
    assert [precision.resolve("auto", cuda=False) for _ in range(3)] == [expected] * 3
    assert measured == [False]
    assert json.loads(precision.cache_path().read_text()) == {precision.machine(False): ratio}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"other": 3}', "{", '{"KEY": "fast"}', '{"KEY": 0}']
)
def test_a_file_that_says_nothing_is_measured_again(speed, content):
    measured, key = speed(3.0), precision.machine(False)
    path = precision.cache_path()
    path.parent.mkdir(parents=True)
    path.write_text(content.replace("KEY", key))
    assert precision.bf16_speed(False) == 3.0 and measured == [False]
    found = json.loads(path.read_text())
    assert found[key] == 3.0 and found.get("other", 3) == 3


def test_a_folder_that_cannot_be_written_is_no_error(speed, monkeypatch, tmp_path):
    measured = speed(3.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert precision.resolve("auto", False) == precision.resolve("auto", False) == "bf16"
    assert len(measured) == 2


def test_many_at_once_leave_a_whole_file(speed):
    speed(3.0)
    threads = [threading.Thread(target=precision.bf16_speed, args=(False,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(precision.cache_path().read_text()) == {precision.machine(False): 3.0}
    assert [path.name for path in precision.cache_path().parent.iterdir()] == ["precision.json"]


def test_the_variable_says_it_without_a_measurement(speed, monkeypatch):
    measured = speed(3.0)
    monkeypatch.setenv(precision.VARIABLE, "fp32")
    assert precision.resolve("auto") == "fp32" and precision.resolve("bf16") == "bf16"
    monkeypatch.setenv(precision.VARIABLE, "auto")
    with pytest.raises(InputError, match="FAIRSEQ_PEFT_PRECISION=auto is unknown: set fp32"):
        precision.resolve("auto")
    with pytest.raises(InputError, match="--precision 'half' is unknown: give auto, fp32"):
        precision.resolve("half")
    assert measured == []


def test_the_measurement_is_a_ratio():
    assert 0.001 < precision.measure(cuda=False) < 100


def test_bf16_that_is_slower_is_warned_of(speed, caplog):
    speed(0.25)
    precision.warn_if_slow("bf16")
    assert "bf16 takes 4.0 times as long here" in caplog.text
    caplog.clear()
    precision.warn_if_slow("fp32")
    assert caplog.text == ""


def test_a_model_trained_in_bf16_elsewhere_is_served_slowly(speed, build, caplog):
    speed(0.25)
    Classifier(build("full"), "bf16", "cpu")
    assert "bf16 takes 4.0 times as long here" in caplog.text


def test_a_command_line_for_the_cpu_asks_for_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(precision, "DEVICES", ("/",))
    for words, expected in (
        (["fairseq-train", "data"], True),
        (["fairseq-train", "data", "--cpu"], False),
        (["fairseq-hydra-train", "common.cpu=true"], False),
        (["fairseq-hydra-train", "++common.cpu=True"], False),
    ):
        monkeypatch.setattr("sys.argv", words)
        assert precision.uses_cuda() is expected
    monkeypatch.setattr("sys.argv", ["fairseq-train"])
    monkeypatch.setattr(precision, "DEVICES", ())
    monkeypatch.setattr("sys.platform", "linux")
    assert precision.uses_cuda() is False


def test_a_model_says_what_it_computes_in(speed, build, monkeypatch):
    speed(2.0)
    model = build("lora", precision="auto")
    assert (
        model.args.precision == "bf16"
        and model.encoder.sentence_encoder.half_dtype is torch.bfloat16
    )
    monkeypatch.setenv(precision.VARIABLE, "fp32")
    model = build("lora", precision="auto")
    assert model.args.precision == "fp32" and model.encoder.sentence_encoder.half_dtype is None
    assert "--precision" not in TINY_FLAGS


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "model", [{"arch": "roberta_small_lora"}, {"arch": "roberta_peft", "peft": "lora"}]
)
def test_a_run_records_what_ran_and_goes_on_so(fairseq, data_folder, tmp_path, model):
    """Of a model that is named by itself fairseq hands on a copy of the flags."""
    from helpers import train_flags

    def train(name, asked, epochs):
        flags = {"precision": asked, "max_epoch": epochs, **model}
        done = fairseq("train", *train_flags(data_folder, tmp_path / name, **flags))
        assert done.returncode == 0, done.stderr
        run = json.loads((tmp_path / name / "run.json").read_text())
        path = tmp_path / name / "adapter" / "adapter.json"
        adapter = json.loads(path.read_text())["model"]["precision"]
        return run["hyperparameters"]["precision"], adapter

    assert train("one", None, 1) == ("fp32", "fp32")  # what auto means here: tests/conftest.py
    last = torch.load(tmp_path / "one" / "checkpoint_last.pt", weights_only=True)
    assert last["cfg"]["model"]["precision"] == "fp32"
    assert train("two", "bf16", 1) == ("bf16", "bf16")
    assert train("two", None, 2) == ("bf16", "bf16")


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "asked", [{"precision": "fp16"}, {"fp16": True}], ids=["ours", "fairseq's"]
)
def test_fp16_trains_and_goes_on_exactly(fairseq, data_folder, tmp_path, asked):
    """On a CPU, where torch computes in it, too; weights and the optimizer's state are fp32."""
    from helpers import train_flags

    tensors = []
    for name, epochs in (("one", 3), ("two", 1), ("two", 3)):
        flags = {**asked, "arch": "roberta_small_lora", "max_epoch": epochs}
        done = fairseq("train", *train_flags(data_folder, tmp_path / name, **flags))
        assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        run = json.loads((tmp_path / name / "run.json").read_text())
        assert run["hyperparameters"]["precision"] == "fp16"
        last = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)
        assert last["last_optimizer_state"]["loss_scale"]["num_good"] > 0
        assert {t.dtype for t in last["model"].values()} == {torch.float32}
        tensors.append(last["model"])
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
