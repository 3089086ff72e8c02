"""The plugin by path, installed or not, from anywhere, imported first or last, and not at all."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PACKAGE, ROOT, TINY, train_flags

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

#: The sentence of a run without a base: whoever sees it has the plugin's task and model.
REACHED = "fairseq_peft: error: No base checkpoint was given."


@pytest.fixture
def flags(data_folder, tmp_path):
    """Flags of a run that stops where the plugin asks for a base, as soon as it is in."""

    def make(user_dir):
        return train_flags(data_folder, tmp_path / "run", user_dir=user_dir, from_scratch=None)

    return make


@pytest.fixture(scope="module")
def fairseq(fork_server):
    """In processes that have not imported the plugin."""
    return functools.partial(fork_server.run, imported=False)


@pytest.fixture(scope="module")
def checkpoint(fairseq, data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = fairseq("train", *train_flags(data_folder, folder))
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint_last.pt"


def python(code, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("user_dir", ["fairseq_peft", "user_dir", "./fairseq_peft/"])
def test_from_the_root_of_the_repository(fairseq, flags, user_dir):
    done = fairseq("train", *flags(user_dir.rstrip("/")), cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith(REACHED), done.stderr


@pytest.mark.parametrize("user_dir", [PACKAGE, ROOT / "user_dir"], ids=["package", "example"])
def test_absolute_path_from_another_directory(fairseq, flags, user_dir, tmp_path):
    done = fairseq("train", *flags(user_dir), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(REACHED), done.stderr


def test_relative_path_from_another_directory(fairseq, flags, tmp_path):
    folder = Path(os.path.relpath(PACKAGE, tmp_path))
    done = fairseq("train", *flags(folder), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(REACHED), done.stderr


CALL = """
import sys
{first}
sys.argv = ["fairseq-train", *{argv!r}]
from fairseq_cli.train import cli_main
cli_main()
"""


def test_imported_after_fairseq_and_named_again(fairseq, flags):
    words = [str(word) for word in flags("fairseq_peft")]
    code = CALL.format(first="import fairseq; import fairseq_peft", argv=words)
    done = fairseq("python", code, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith(REACHED), done.stderr


def test_installed_copy_from_another_directory(flags, tmp_path):
    """A copy beside fairseq in site-packages, imported before fairseq, found by its bare name.

    fairseq looks for it at ``.../fairseq/../fairseq_peft`` and compares that spelling.
    """
    import fairseq
    import fairseq_cli

    site = tmp_path / "site"
    for module in (fairseq, fairseq_cli):
        (site / module.__name__).mkdir(parents=True)
        for path in Path(module.__file__).parent.iterdir():
            (site / module.__name__ / path.name).symlink_to(path)
    shutil.copytree(PACKAGE, site / "fairseq_peft", ignore=shutil.ignore_patterns("__pycache__"))
    words = [str(word) for word in flags("fairseq_peft")]
    first = "import fairseq_peft; print(fairseq_peft.__file__)"
    done = python(CALL.format(first=first, argv=words), tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(REACHED), done.stderr
    assert done.stdout.splitlines()[0] == str(site / "fairseq_peft/__init__.py")


def test_looking_for_fairseq_is_not_importing_it(tmp_path):
    """A spec that somebody else asked for must not use up the registration."""
    (tmp_path / "fairseq.py").touch()
    code = """
import importlib, importlib.util, sys
import fairseq_peft
imported, finders = [], len(sys.meta_path)
importlib.import_module = imported.append
assert importlib.util.find_spec("fairseq") is not None and imported == []
import fairseq
assert imported == ["fairseq_peft.plugin"] and len(sys.meta_path) == finders - 1
"""
    done = python(code, ROOT, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", ["fairseq_peft.models", "fairseq_peft.tasks", "fairseq_peft, fairseq"]
)
def test_broken_fairseq_is_one_sentence_with_the_recipe(tmp_path, module):
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq/__init__.py").write_text('raise ValueError("mutable default")\n')
    done = python(f"import {module}", ROOT, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "fairseq does not import here (ValueError: mutable default). Install it with" in last
    assert "fairseq-fixed==0.12.3.1" in last and last.count("does not import") == 1


def test_missing_fairseq_is_one_sentence_with_the_recipe():
    code = "import sys; sys.modules['fairseq'] = None; import fairseq_peft.models"
    done = python(code, ROOT)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "fairseq does not import here (ModuleNotFoundError: " in last
    assert "fairseq-fixed==0.12.3.1" in last


LOAD = """
{first}
from fairseq.checkpoint_utils import load_model_ensemble_and_task
models, cfg, task = load_model_ensemble_and_task([{path!r}])
import torch
tokens = torch.tensor([[0, 5, 6, 2]])
out, _ = models[0].eval()(tokens, features_only=True,
                          classification_head_name=task.cfg.classification_head_name)
print(type(models[0]).__name__, tuple(out.shape), task.labels)
"""


def test_checkpoint_without_the_plugin_says_which_line_is_missing(fairseq, checkpoint, tmp_path):
    done = fairseq("python", LOAD.format(first="", path=str(checkpoint)), cwd=tmp_path)
    assert done.returncode == 1
    message = done.stderr[done.stderr.index("AssertionError: ") :]
    says = "'needs': 'the plugin: import fairseq_peft first or pass --user-dir fairseq_peft'"
    assert says in message[:200]


def test_checkpoint_loads_where_the_plugin_is_imported(fairseq, checkpoint, tmp_path):
    code = LOAD.format(first="import fairseq_peft", path=str(checkpoint))
    done = fairseq("python", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "RobertaPeftModel (1, 2) ['bad', 'good']"


def test_hub_interface_takes_the_user_dir(fairseq, checkpoint, data_folder, tmp_path):
    code = f"""
from fairseq.models.roberta import RobertaModel
hub = RobertaModel.from_pretrained({str(checkpoint.parent)!r}, {checkpoint.name!r},
    {str(data_folder)!r}, bpe=None, user_dir={str(PACKAGE)!r})
print(type(hub.model).__name__, hub.model.setting.name)
"""
    done = fairseq("python", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "RobertaPeftModel lora"


def test_hydra(fairseq, data_folder, tmp_path):
    """fairseq-hydra-train composes before it imports the plugin: names go in with +."""
    words = [f"common.user_dir={PACKAGE}", "common.cpu=true", f"+task.data={data_folder}"]
    words += ["+task._name=sentence_classification", "+task.from_scratch=true"]
    words += ["+model._name=roberta_small_lora", "+model.lora_rank=3"]
    words += [f"+model.{name}={value}" for name, value in TINY.items()]
    words += ["~criterion", "+criterion._name=sentence_classification"]
    words += ["+optimizer._name=peft_adamw", "optimization.lr=[0.01]", "optimization.max_epoch=1"]
    words += ["dataset.batch_size=8", "dataset.valid_subset='valid,test'", "dataset.num_workers=0"]
    words += [f"checkpoint.save_dir={tmp_path}/run", "checkpoint.no_epoch_checkpoints=true"]
    done = fairseq("hydra-train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert (described["method"], described["method_config"]["rank"]) == ("lora", 3)
    assert described["method_parameters"] == 2 * 2 * 3 * (16 + 16)
    assert described["rows"] == {"train": 67, "valid": 21, "test": 21}
    # fairseq-validate reads what hydra wrote.
    done = fairseq(
        *("validate", data_folder, "--user-dir", PACKAGE, "--task", "sentence_classification"),
        *("--path", tmp_path / "run/checkpoint_last.pt", "--batch-size", 8, "--num-workers", 0),
        *("--cpu", "--log-format", "simple"),
    )
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert f"accuracy {round(line['subsets']['valid']['accuracy'], 6):g}" in done.stdout


def test_help_shows_every_knob(fairseq):
    from fairseq_peft.models.options import METHOD_FIELDS, ROBERTA

    done = fairseq(
        *("train", "--user-dir", PACKAGE, "--arch", "roberta_small_lora", "--optimizer"),
        *("peft_adamw", "--task", "sentence_classification", "--help"),
    )
    assert done.returncode == 0, done.stderr
    knobs = [*METHOD_FIELDS, *ROBERTA, "from_scratch", "num_classes", "no_init_token"]
    for knob in [*knobs, "classification_head_name", "adamw_betas"]:
        assert f"--{knob.replace('_', '-')}" in done.stdout, knob
    assert "--needs" not in done.stdout
