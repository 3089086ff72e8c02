"""What the plugin needs may be imported before fairseq, which brings the plugin along."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

#: scikit-learn and scipy wait for the first of fairseq's own metrics, which is what it always was.
METRICS_LATER = """import sys
heavy = ("sklearn", "scipy")
print("early:", *[name for name in heavy if name in sys.modules])
from fairseq.criterions.sentence_prediction import acc_and_f1, pearson_and_spearman
from fairseq.tasks.audio_classification import sklearn_metrics
import numpy as np
scores = acc_and_f1(np.array([1, 0, 1, 0]), np.array([1, 1, 1, 0]))
assert abs(scores["f1"] - 0.8) < 1e-12
assert pearson_and_spearman(np.arange(3), np.arange(3) * 2)["corr"] > 0.999
assert sklearn_metrics.accuracy_score([1, 0], [1, 1]) == 0.5
import sklearn.metrics
assert type(sklearn.metrics) is type(sys)
print("then:", *[name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("module", ["layers.attention", "data.sentence_dataset"])
def test_a_module_that_the_plugin_needs_comes_first(module):
    code = (
        f"import fairseq_peft.{module}; from fairseq.models import ARCH_MODEL_REGISTRY; "
        "assert 'roberta_small_lora' in ARCH_MODEL_REGISTRY; " + METRICS_LATER
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["early:", "then: sklearn scipy"]
