"""notebooks/quickstart.ipynb runs from top to bottom, and is kept without what it printed."""

from __future__ import annotations

import ast
import json
import os

import pytest
from helpers import ROOT

pytest.importorskip("torch")
pytest.importorskip("fairseq")

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def test_no_outputs_are_kept():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    kept = [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert kept == [] and sum(cell["cell_type"] == "code" for cell in cells) > 5


@pytest.mark.end_to_end
def test_the_notebook_runs(tmp_path, python):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    short = {"UPDATES": "20", "EPOCHS": "1", "PYTHON": python, "OMP_NUM_THREADS": "1"}
    client.execute(env={**os.environ, "WORK": str(tmp_path), **short})
    *_, report, curves, answers = (cell for cell in notebook.cells if cell.cell_type == "code")
    (accuracies,) = (out["data"]["text/plain"] for out in report.outputs if "data" in out)
    starts = [("pretrained", name) for name in ("full", "head_only", "lora")]
    found = ast.literal_eval(accuracies)
    assert set(found) == {("scratch", "full"), *starts} and 0 < min(found.values()) < 1
    assert ["image/png" in out["data"] for out in curves.outputs] == [True]
    (labels,) = (out["data"]["text/plain"] for out in answers.outputs if "data" in out)
    assert [label in ("0", "1") for label, _ in ast.literal_eval(labels)] == [True, True]
    assert (tmp_path / "report" / "report.md").exists()
