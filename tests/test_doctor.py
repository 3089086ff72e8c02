"""``fairseq-peft doctor``: each known bad combination on a made-up environment, and the command."""

import json
import subprocess
import sys

import pytest

from fairseq_peft import doctor
from fairseq_peft.doctor import Environment, find_problems

GOOD = {
    "torch": "2.13.0+cpu",
    "torchaudio": "2.13.0",
    "fairseq-fixed": "0.12.3.1",
    "numpy": "2.4.6",
    "hydra-core": "1.3.2",
    "omegaconf": "2.3.0",
    "setuptools": "80.10.2",
    "pip": "26.3",
}


def environment(python="3.11.7", remove=(), import_errors=(), loads_namespace=True, **versions):
    """GOOD, some versions changed (``_`` for ``-``) or removed; some modules not importable."""
    installed = {**GOOD, **{name.replace("_", "-"): value for name, value in versions.items()}}
    return Environment(
        python=python,
        versions={name: version for name, version in installed.items() if name not in remove},
        import_errors=dict.fromkeys(import_errors, "ImportError: made up"),
        loads_namespace=loads_namespace,
    )


STOCK = {"remove": ["fairseq-fixed"], "fairseq": "0.12.2"}
FAST = "fairseq.data.data_utils_fast"

# name of the check -> an environment that has it
BAD = {
    "python-version": environment(python="3.13.0"),
    "torch-missing": environment(remove=["torch"], import_errors=["torch"]),
    "fairseq-missing": environment(remove=["fairseq-fixed"], import_errors=["fairseq", FAST]),
    "two-fairseqs": environment(fairseq="0.12.2"),
    "stock-mutable-default": environment(**STOCK, import_errors=["fairseq"]),
    "stock-better-transformer": environment(**STOCK, python="3.9.18"),
    "stock-numpy": environment(**STOCK, numpy="1.24.0"),
    "pip-omegaconf": environment(**STOCK, pip="24.1"),
    "old-omegaconf": environment(omegaconf="2.0.6"),
    "setuptools-81": environment(setuptools="81.0.0", import_errors=["fairseq"]),
    "not-compiled": environment(import_errors=[FAST]),
    "fairseq-broken": environment(import_errors=["fairseq", FAST]),
    "weights-only": environment(torch="2.6.0", loads_namespace=False),
    "torchaudio": environment(remove=["torchaudio"]),
    "sentencepiece-missing": environment(import_errors=["sentencepiece"]),
    "tensorboard-missing": environment(import_errors=["torch.utils.tensorboard"]),
    "report-missing": environment(import_errors=["matplotlib"]),
}

# name of the check -> the nearest environment that does not have it
FINE = {
    "python-version": environment(python="3.12.9"),
    "stock-mutable-default": environment(**STOCK, python="3.10.13"),
    "stock-numpy": environment(**STOCK, numpy="1.23.5"),
    "pip-omegaconf": environment(**STOCK, pip="24.0"),
    "setuptools-81": environment(setuptools="81.0.0"),
    "weights-only": environment(torch="2.5.1", loads_namespace=False),
    "fairseq-missing": environment(remove=["fairseq-fixed"]),  # a checkout on the path
}


def names(env):
    return [problem.name for problem in find_problems(env)]


def test_every_check_has_an_example():
    assert {check.name for check in doctor.CHECKS} == set(BAD)


def test_a_good_environment_has_no_problem():
    assert names(environment()) == []


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_combination_is_named_with_its_cure(name):
    (problem,) = [p for p in find_problems(BAD[name]) if p.name == name]
    assert len(problem.cure) > 10
    assert "{" not in problem.text, "a name in the text was not filled in"


@pytest.mark.parametrize("name", sorted(FINE))
def test_the_nearest_good_combination_is_left_alone(name):
    assert name not in names(FINE[name])


def test_errors_come_first():
    levels = [
        p.level
        for p in find_problems(environment(remove=["torchaudio"], fairseq="0.12.2", numpy="2.0"))
    ]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert levels[0] == "error" and levels[-1] == "note"


def test_a_stock_fairseq_that_does_not_import_is_not_called_missing():
    assert "fairseq-missing" not in names(BAD["stock-mutable-default"])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.13.0+cpu", (2, 13, 0)),
        ("0.12.3.1", (0, 12, 3, 1)),
        ("2.6.0a0+git1234", (2, 6, 0)),
        ("1.3.2.dev1", (1, 3, 2)),
    ],
)
def test_release(text, numbers):
    assert doctor.release(text) == numbers


def test_cpu_features_reads_the_flags():
    features = doctor.cpu_features(
        "model name\t: A CPU\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n"
    )
    assert features["cpu"] == "A CPU"
    assert features["avx512"] and features["avx512_bf16"] and features["amx_bf16"]
    assert not doctor.cpu_features("flags : fpu\n")["avx512"]
    assert not doctor.cpu_features("")["amx_bf16"]  # not Linux on x86


def test_text_and_json_tell_the_same():
    env = environment(remove=["torch"], import_errors=["torch"])
    env.train_error = "ModuleNotFoundError: No module named 'torch'"
    env.features = doctor.cpu_features("")
    problems = find_problems(env)
    text = doctor.as_text(env, problems)
    assert "DOES NOT WORK: ModuleNotFoundError" in text
    assert all(problem.cure in text for problem in problems)
    answer = json.loads(json.dumps(doctor.as_json(env, problems)))
    assert answer["works"] is False
    assert answer["problems"][0]["name"] == "torch-missing"


def test_gpus_are_described():
    gpu = {"name": "Some GPU", "memory_bytes": 80 * 2**30, "bf16": True}
    assert doctor.describe_gpu({"gpus": [gpu]}) == "Some GPU, 80 GiB, bf16"
    assert "sees no device" in doctor.describe_gpu({"cuda_build": "12.8", "gpus": []})


@pytest.mark.end_to_end
def test_the_command_exits_with_0_only_if_training_works(tmp_path):
    pytest.importorskip("fairseq")
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_peft.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=doctor.PACKAGE_DIR.parent,
    )
    answer = json.loads(done.stdout)
    assert answer["works"] == (done.returncode == 0), done.stderr
    assert answer["works"], answer["train_error"]
    assert "torch" in answer["versions"] and answer["features"]["threads"] >= 1


def test_the_command_fails_where_fairseq_does_not_import(tmp_path):
    (tmp_path / "fairseq_cli").mkdir()
    (tmp_path / "fairseq_cli" / "__init__.py").write_text("")
    (tmp_path / "fairseq_cli" / "train.py").write_text("raise SystemExit('broken on purpose')\n")
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_peft.cli", "doctor"],
        capture_output=True,
        text=True,
        cwd=doctor.PACKAGE_DIR.parent,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 1
    assert done.stdout.endswith("DOES NOT WORK: broken on purpose\n")


def test_user_dir_is_the_package(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_peft.cli", "user-dir"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(doctor.PACKAGE_DIR.parent), "PATH": ""},
        check=True,
    )
    assert done.stdout == f"{doctor.PACKAGE_DIR}\n"
