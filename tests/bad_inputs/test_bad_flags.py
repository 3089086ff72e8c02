"""Bad flags and places: one clear sentence, before training starts, nothing half-written."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from bench import left_behind, refused  # noqa: E402
from helpers import TINY  # noqa: E402


@pytest.mark.parametrize(
    "more, parts",
    [
        ({"peft_targets": "query"}, ["'?query'? matches no module", "Try q_proj,v_proj"]),
        ({"peft": "loar"}, ["--peft 'loar' is unknown", "lora"]),
        ({"lora_rank": 0}, ["--lora-rank 0"]),
        ({"lora_dropout": 1}, ["--lora-dropout 1"]),
        ({"adapter_bottleneck": 8}, ["--adapter-bottleneck would be ignored: --peft lora"]),
        ({"peft": "prompt", "prompt_num_tokens": 35}, ["35 prompt or prefix tokens leave 5 of 40"]),
        ({"eval_test": "once"}, ["--eval-test once is unknown: give each"]),
        ({"max_valid_steps": 1}, ["--max-valid-steps 1 would leave rows out"]),
        ({"bf16": True}, ["--precision bf16"]),
        ({"precision": "half"}, ["--precision 'half' is unknown"]),
        ({"combine_val": True}, ["--combine-val would be ignored"]),
        ({"criterion": "cross_entropy"}, ["--criterion cross_entropy does not go with"]),
        ({"criterion": "sentence_prediction"}, ["--criterion sentence_prediction does not"]),
        ({"adamw_betas": "0.9"}, ["--adamw-betas '0.9' is not a pair"]),
        ({"arch": None}, ["--arch is missing"]),
        ({"maximize_best_checkpoint_metric": None}, ["keep the worst epoch. Give --best-check"]),
        ({"best_checkpoint_metric": None}, ["highest loss"]),
        ({"best_checkpoint_metric": "f1"}, ["f1 is unknown; expected accuracy, .* f1_good"]),
        ({"valid_subset": "test,valid"}, ["a test set never does. Give --valid-subset valid,test"]),
        ({"disable_validation": True}, ["--disable-validation: without a validation nothing"]),
        ({"validate_interval": 2}, ["--validate-interval 2 with --max-epoch 1: without a valid"]),
        ({"validate_interval": 2, "max_update": 99}, ["--validate-interval 2 with --max-epoch 1"]),
        ({"batch_size": 0}, ["--batch-size 0: expected 1 or more"]),
        ({"batch_size": -2}, ["--batch-size -2: expected 1 or more"]),
        ({"batch_size": None}, ["--batch-size and --max-tokens are missing"]),
        ({"max_tokens_valid": 0}, ["--max-tokens-valid 0: expected 1 or more"]),
        ({"update_freq": "1,0"}, ["--update-freq 0: expected 1 or more"]),
        ({"update_freq": "[]"}, ["--update-freq is empty: expected 1 or more"]),
        ({"validate_interval": 0}, ["--validate-interval 0: expected 1 or more"]),
        ({"save_interval": 0}, ["--save-interval 0: expected 1 or more"]),
        ({"log_interval": 0}, ["--log-interval 0: expected 1 or more"]),
        ({"max_epoch": -1}, ["--max-epoch -1: expected 0 or more"]),
        ({"max_update": -5}, ["--max-update -5: expected 0 or more"]),
        ({"seed": -1}, ["--seed -1: expected 0 or more"]),
        ({"seed": 2**32}, ["--seed 4294967296: expected less than 4294967296"]),
        ({"validate_after_updates": 10}, ["--validate-after-updates 10 with 9 updates: without"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_flag(bench, more, parts):
    refused(bench, bench.train(**more), *parts)


@pytest.mark.parametrize("arch", ["roberta_base", "transformer"])
def test_stock_architecture(bench, arch):
    """Stock fairseq owns the bare name roberta_base."""
    unknown = {name: None for name in TINY if arch != "roberta_base"}
    done = bench.train(arch=arch, **unknown)
    refused(bench, done, f"--arch {arch} does not go with --task sentence_classification")


def test_missing_init_embeddings(bench):
    done = bench.train(finetune_from_model=None, from_scratch=True, init_embeddings="no.npz")
    refused(bench, done, "--init-embeddings no.npz cannot be read")


def test_learning_rate_at_which_training_diverges(bench):
    """Known only in training; still a sentence, and no dump of all weights."""
    done = bench.train(lr=1e30)
    assert done.returncode == 1
    assert done.stderr.startswith("fairseq_peft: error: The gradients' norm is nan: training has")
    assert "--lr" in done.stderr and len(done.stderr.splitlines()) == 1
    assert left_behind(bench.save_dir) == ["plan.json", "run.json"]


def test_colon_in_the_name_of_the_data_folder(bench):
    """fairseq reads a list of folders there, and ends in a traceback."""
    data = bench.own_data()
    refused(bench, bench.train(data=data.rename(data.with_name("a:b"))), "a:b has a ':' in its")


def test_metrics_that_take_no_line_are_noticed_before_training(bench):
    (bench.save_dir / "metrics.jsonl").mkdir(parents=True)
    done = bench.train()
    assert done.returncode == 1 and "begin training epoch" not in done.stdout
    assert "metrics.jsonl cannot be written (Is a directory)" in done.stderr


def test_save_dir_that_is_a_file(bench):
    bench.save_dir.write_text("here first\n")
    refused(bench, bench.train(), "run", "--save-dir")
    assert bench.save_dir.read_text() == "here first\n"


def test_run_that_exists_stays_as_it_was(bench, trained):
    """A resumed run with a flag that does not fit leaves checkpoint, run.json and metrics alone."""
    shutil.copytree(trained.parent, bench.save_dir)
    files = [path for path in bench.save_dir.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    done = bench.train(lora_rank=4, max_epoch=2)
    assert done.returncode == 1 and "--lora-rank" in done.stderr
    assert {path: path.read_bytes() for path in files} == before
    assert [path for path in bench.save_dir.rglob("*") if path.is_file()] == files
