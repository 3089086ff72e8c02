"""The baseline to beat: TF-IDF and logistic regression on the raw text, tuned on ``valid`` alone.

Grid (60 settings, 5 to 10 s): n-grams of words (1, 1) and (1, 2); ``min_df`` 1, 2, 3;
``sublinear_tf`` or not; C of the L2-penalised logistic regression 1, 3, 10, 30, 100. The first of
the best settings wins, and the grid runs from small to large. The classifier sees ``train`` only,
as every other method does.

It reads whole texts, as words. ``Pieces`` gives it what a model reads instead: the pieces of its
sentencepiece model or ``--bpe``, case and all, of texts that are cut. The difference is what the
model's input costs.
"""

from __future__ import annotations

import itertools
import logging
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from fairseq_peft import __version__
from fairseq_peft.errors import InputError
from fairseq_peft.report.result import write_result
from fairseq_peft.report.runs import SCHEMA, check_result
from fairseq_peft.runs import predictions
from fairseq_peft.text.checks import drop_duplicates
from fairseq_peft.text.corpus import SPLITS, read_corpus, sort_labels
from fairseq_peft.text.subwords import Subwords

GRID = {
    "ngram_range": ((1, 1), (1, 2)),
    "min_df": (1, 2, 3),
    "sublinear_tf": (False, True),
    "C": (1.0, 3.0, 10.0, 30.0, 100.0),
}
#: For texts that are cut into pieces already.
PIECE_OPTIONS = {"token_pattern": r"\S+", "lowercase": False}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pieces:
    """Texts as a model reads them: the first ``max_tokens`` - 2 of their pieces (all for None):
    ``<s>`` and ``</s>`` take a position each."""

    subwords: Subwords
    max_tokens: int | None = None

    def __post_init__(self):
        if self.max_tokens is not None and self.max_tokens < 3:
            raise InputError(
                f"--max-tokens {self.max_tokens} leaves no piece beside <s> and </s>. Give 3 or "
                "more."
            )

    @property
    def label(self) -> str:
        """What the baseline on them is called."""
        return "tfidf-pieces" if self.max_tokens is None else f"tfidf-pieces-{self.max_tokens}"

    def __call__(self, texts: list[str]) -> list[str]:
        """Each text as its pieces with spaces between them."""
        limit = None if self.max_tokens is None else self.max_tokens - 2
        return [" ".join(row[:limit]) for row in self.subwords.encode(texts)]


def read_data(
    raw: Path, drop: bool = False, reading: dict | None = None
) -> dict[str, tuple[list[str], list[str]]]:
    """{split: (texts, labels)} of a folder or file, refused where prepare_data.sh refuses it.

    ``reading`` goes to ``read_corpus``: the columns of a table, and the seed and shares of a file
    without splits.

    ``drop`` leaves out the rows of train whose text valid or test has as well.
    """
    corpus = read_corpus(raw, **(reading or {}))
    for split in SPLITS:
        if split not in corpus.rows:
            raise InputError(f"'{raw}' has no rows of {split}; the baseline is measured on {split}")
    if drop:
        corpus = drop_duplicates(corpus)
    return {
        split: (
            [row.text if row.text2 is None else f"{row.text} {row.text2}" for row in rows],
            [row.label for row in rows],
        )
        for split, rows in corpus.rows.items()
    }


def run_tfidf(
    raw: Path | str,
    runs: Path | str,
    name: str,
    drop: bool = False,
    pieces: Pieces | None = None,
    reading: dict | None = None,
) -> dict:
    """Tune on valid, measure on test, write ``runs/name/baseline/tfidf/seed1/result.json``; with
    ``pieces``, its label is in the place of ``tfidf``.

    Trainable: one weight an n-gram and one bias for two classes, that for each class beyond two.

    Raises:
        InputError: what ``text.corpus`` says of ``raw``, or it has no test split.
    """
    started = time.perf_counter()
    data = read_data(Path(raw), drop, reading)
    label = "tfidf" if pieces is None else pieces.label
    run_dir = Path(runs) / name / "baseline" / label / "seed1"
    if pieces is not None:
        data = {split: (pieces(texts), labels) for split, (texts, labels) in data.items()}
    best = _tune(data, {} if pieces is None else PIECE_OPTIONS)
    predicted = {
        split: best["classifier"].predict(best["vectorizer"].transform(data[split][0]))
        for split in ("valid", "test")
    }
    result = {
        **_result(data, best, predicted["test"]),
        "method": label,
        "data": name,
        "seconds": time.perf_counter() - started,
    }
    check_result(result, run_dir / "result.json")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make '{run_dir}': {error.strerror}") from None
    write_predictions(run_dir / predictions.NAME, data, predicted, result["labels"])
    write_result(run_dir, result)
    return result


def write_predictions(path: Path, data: dict, predicted: dict, labels: list[str]) -> None:
    """Write what was predicted for each row, as a run does; one for a class that train does not
    have counts as the class behind the last."""
    import numpy as np

    ids = {label: number for number, label in enumerate(labels)}
    found = predictions.Predictions()
    for split, guesses in predicted.items():
        target, guess = (
            np.array([ids.get(label, len(labels)) for label in side])
            for side in (data[split][1], guesses)
        )
        found.add(split, target, guess)
    predictions.write(path, found)


def _tune(data: dict, options: dict) -> dict:
    """The setting with the highest accuracy on valid, with its vectoriser and classifier."""
    import sklearn.linear_model  # noqa: F401  the limit holds only for BLAS libraries loaded by now
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # two threads are ten times slower on problems this small
        return _search(data, options)


def _search(data: dict, options: dict) -> dict:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    (texts, labels), (valid_texts, valid_labels) = data["train"], data["valid"]
    best = {"valid_accuracy": -1.0}
    *text_knobs, _ = GRID
    for values in itertools.product(*(GRID[knob] for knob in text_knobs)):
        setting = dict(zip(text_knobs, values))
        vectorizer = TfidfVectorizer(**setting, **options)
        try:
            features = vectorizer.fit_transform(texts)
        except ValueError:  # nothing occurs min_df times
            continue
        valid_features = vectorizer.transform(valid_texts)
        for strength in GRID["C"]:
            started = time.perf_counter()
            # tol so tight that the optimum, not the solver, decides; newton-cg needs 20 ms for it
            classifier = LogisticRegression(C=strength, solver="newton-cg", tol=1e-6, max_iter=1000)
            classifier.fit(features, labels)
            seconds = time.perf_counter() - started
            accuracy = float(classifier.score(valid_features, valid_labels))
            if accuracy > best["valid_accuracy"]:
                best = {
                    "valid_accuracy": accuracy,
                    "setting": {**setting, "C": strength},
                    "vectorizer": vectorizer,
                    "classifier": classifier,
                    "train_seconds": seconds,
                }
        logger.info("tfidf: %s: best on valid so far %.4f", setting, best["valid_accuracy"])
    if "setting" not in best:
        raise InputError("the texts of train hold no words of two letters or more")
    return best


def _result(data: dict, best: dict, predicted) -> dict:
    """``best`` measured on test, in the schema of result.json.

    Args:
        predicted: the labels that it gives the rows of test.
    """
    import pickle

    import sklearn
    from sklearn.metrics import f1_score, matthews_corrcoef

    _, labels = data["test"]
    classifier = best["classifier"]
    num_correct = sum(guess == label for guess, label in zip(predicted, labels))
    num_parameters = int(classifier.coef_.size + classifier.intercept_.size)
    return {
        "schema": SCHEMA,
        "data": None,
        "init": "baseline",
        "method": "tfidf",
        "seed": 1,
        "arch": "tfidf",
        "base": None,
        "method_config": {**best["setting"], "ngram_range": list(best["setting"]["ngram_range"])},
        "labels": sort_labels(set(data["train"][1])),
        "rows": {split: len(data[split][0]) for split in SPLITS},
        "trainable_parameters": num_parameters,
        "method_parameters": num_parameters,
        "head_parameters": 0,
        "total_parameters": num_parameters,
        # the vocabulary with its weights, as one would store it
        "task_bytes": len(pickle.dumps((best["vectorizer"], classifier))),
        "hyperparameters": {},
        "versions": {"fairseq_peft": __version__, "sklearn": sklearn.__version__},
        "device": "cpu",
        "threads": 1,
        "command": f"fairseq-peft tfidf (Python {platform.python_version()})",
        "num_epochs": None,
        "best_epoch": None,
        "valid_accuracy": best["valid_accuracy"],
        "test_accuracy": num_correct / len(labels),
        "test_macro_f1": float(f1_score(labels, predicted, average="macro")),
        "test_mcc": float(matthews_corrcoef(labels, predicted)),
        "best_test_epoch": None,
        "best_test_accuracy": None,
        "seconds": None,
        "train_seconds": best["train_seconds"],
        "tokens_per_second": None,
        "peak_memory_bytes": None,
        "curve": [],
    }
