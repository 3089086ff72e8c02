"""What the plugin needs may be imported before fairseq, which brings the plugin along."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

#: What only some runs need waits for them: scikit-learn and scipy for the first of fairseq's own
#: metrics, tensorboard for its first file. Then they are what they always were.
IMPORTED_LATER = """
heavy = ("sklearn", "scipy", "tensorboard", "tabulate")
early = [name for name in heavy if name in sys.modules]
assert not early, early
from fairseq.criterions.sentence_prediction import acc_and_f1, pearson_and_spearman
from fairseq.tasks.audio_classification import sklearn_metrics
import numpy as np
scores = acc_and_f1(np.array([1, 0, 1, 0]), np.array([1, 1, 1, 0]))
assert abs(scores["f1"] - 0.8) < 1e-12
assert pearson_and_spearman(np.arange(3), np.arange(3) * 2)["corr"] > 0.999
assert sklearn_metrics.accuracy_score([1, 0], [1, 1]) == 0.5
import sklearn.metrics
assert type(sklearn.metrics) is type(sys)
from fairseq.logging.progress_bar import SummaryWriter
with tempfile.TemporaryDirectory() as folder:
    SummaryWriter(folder).close()
    assert os.listdir(folder)
assert gc.isenabled()
"""
#: Everything that has a name for fairseq, and hydra's configuration of each.
REGISTERED = """
import gc, json, os, sys, tempfile
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

def plain(stored):
    if isinstance(stored, dict):
        return {name: plain(inner) for name, inner in sorted(stored.items())}
    return [str(OmegaConf.get_type(stored.node)), OmegaConf.to_container(stored.node)]

print(json.dumps({
    "arch": sorted(ARCH_MODEL_REGISTRY),
    "task": sorted(TASK_REGISTRY),
    **{kind: sorted(registry["registry"]) for kind, registry in REGISTRIES.items()},
    "configurations": plain(ConfigStore.instance().repo),
}, default=str))
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def fairseq_first() -> dict:
    """What is registered under ``fairseq-train --user-dir fairseq_peft``."""
    return json.loads(run("import fairseq, fairseq_peft" + REGISTERED))


@pytest.mark.parametrize("module", ["layers.attention", "data.sentence_dataset"])
def test_a_module_that_the_plugin_needs_comes_first(module, fairseq_first):
    found = json.loads(run(f"import fairseq_peft.{module}" + REGISTERED + IMPORTED_LATER))
    assert "roberta_small_lora" in found["arch"]
    assert found == fairseq_first
