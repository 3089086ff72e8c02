"""The baseline to beat: TF-IDF and logistic regression on the raw text, tuned on ``valid`` alone.

Grid (60 settings, 5 to 10 s): n-grams of words (1, 1) and (1, 2); ``min_df`` 1, 2, 3;
``sublinear_tf`` or not; C of the L2-penalised logistic regression 1, 3, 10, 30, 100. The first of
the best settings wins, and the grid runs from small to large. The classifier sees ``train`` only,
as every other method does. Rows with any number of labels, or with a number, are fitted and chosen
by as ``tfidf_kinds`` says; alpha of the ridge regression of numbers is 10, 3, 1, 0.3, 0.1.

It reads whole texts, as words. ``Pieces`` gives it what a model reads instead: the pieces of its
sentencepiece model or ``--bpe``, case and all, of texts that are cut. The difference is what the
model's input costs.
"""

from __future__ import annotations

import itertools
import logging
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from fairseq_peft import __version__
from fairseq_peft.errors import InputError
from fairseq_peft.report.result import write_result
from fairseq_peft.report.runs import SCHEMA, check_result
from fairseq_peft.report.tfidf_kinds import KINDS, Classes
from fairseq_peft.runs import predictions
from fairseq_peft.runs.choice import Choice
from fairseq_peft.scores import CLASSES, NUMBER, is_share
from fairseq_peft.text.checks import drop_duplicates
from fairseq_peft.text.corpus import SPLITS, read_corpus
from fairseq_peft.text.subwords import Subwords

GRID = {
    "ngram_range": ((1, 1), (1, 2)),
    "min_df": (1, 2, 3),
    "sublinear_tf": (False, True),
    "C": (1.0, 3.0, 10.0, 30.0, 100.0),
}
#: In the place of C, for numbers; as there, what fits train least comes first.
ALPHAS = (10.0, 3.0, 1.0, 0.3, 0.1)
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

    ``reading`` goes to ``read_corpus``: what a row has, the columns of a table, and the seed and
    shares of a file without splits.

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

    Trainable: one weight an n-gram and one bias for two classes, for a number, and for each label;
    that for each class beyond two.

    Raises:
        InputError: what ``text.corpus`` says of ``raw``, or it has no test split.
    """
    started = time.perf_counter()
    data = read_data(Path(raw), drop, reading)
    kind = (reading or {}).get("kind", CLASSES)
    label = "tfidf" if pieces is None else pieces.label
    run_dir = Path(runs) / name / "baseline" / label / "seed1"
    if pieces is not None:
        data = {split: (pieces(texts), labels) for split, (texts, labels) in data.items()}
    best = _tune(data, {} if pieces is None else PIECE_OPTIONS, kind)
    predicted = {
        split: best["classifier"].predict(best["vectorizer"].transform(data[split][0]))
        for split in ("valid", "test")
    }
    result = {
        **_result(data, best, predicted),
        "method": label,
        "data": name,
        "seconds": time.perf_counter() - started,
    }
    check_result(result, run_dir / "result.json")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make '{run_dir}': {error.strerror}") from None
    write_predictions(run_dir / predictions.NAME, data, predicted, best["task"])
    write_result(run_dir, result)
    return result


def in_words(result: dict) -> str:
    """``test accuracy 88.10 %, valid 87.25 %``, or the scores of another kind of task."""
    metric = Choice.of_run(result).metric
    unit, scale = (" %", 100) if is_share(metric) else ("", 1)
    test, valid = result[f"test_{metric}"], result.get("best_value", result["valid_accuracy"])
    return f"test {metric} {scale * test:.2f}{unit}, valid {scale * valid:.2f}{unit}"


def write_predictions(path: Path, data: dict, predicted: dict, task: Classes) -> None:
    """Write what was predicted for each row, as a run does."""
    found = predictions.Predictions()
    for split, guesses in predicted.items():
        found.add(split, task.answers(task.targets(data[split][1])), task.answers(guesses))
    predictions.write(path, found)


def _tune(data: dict, options: dict, kind: str = CLASSES) -> dict:
    """The setting that is best on valid, with its vectoriser and classifier."""
    import sklearn.linear_model  # noqa: F401  the limit holds only for BLAS libraries loaded by now
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # two threads are ten times slower on problems this small
        return _search(data, options, kind)


def _search(data: dict, options: dict, kind: str) -> dict:
    from sklearn.feature_extraction.text import TfidfVectorizer

    (texts, labels), (valid_texts, valid_labels) = data["train"], data["valid"]
    task = KINDS[kind](labels)
    targets, valid_targets = task.targets(labels), task.targets(valid_labels)
    best = {"task": task, "value": -math.inf}
    *text_knobs, _ = GRID
    for values in itertools.product(*(GRID[knob] for knob in text_knobs)):
        setting = dict(zip(text_knobs, values))
        vectorizer = TfidfVectorizer(**setting, **options)
        try:
            features = vectorizer.fit_transform(texts)
        except ValueError:  # nothing occurs min_df times
            continue
        valid_features = vectorizer.transform(valid_texts)
        for strength in ALPHAS if kind == NUMBER else GRID["C"]:
            started = time.perf_counter()
            classifier = task.fit(features, targets, strength)
            seconds = time.perf_counter() - started
            value = task.value(valid_targets, classifier.predict(valid_features))
            if value > best["value"]:
                best = {
                    "task": task,
                    "value": value,
                    "setting": {**setting, task.knob: strength},
                    "vectorizer": vectorizer,
                    "classifier": classifier,
                    "train_seconds": seconds,
                }
        logger.info("tfidf: %s: best on valid so far %.4f", setting, best["value"])
    if "setting" not in best:
        raise InputError("the texts of train hold no words of two letters or more")
    return best


def _result(data: dict, best: dict, predicted: dict) -> dict:
    """``best`` measured on test, in the schema of result.json.

    Args:
        predicted: what it gives the rows of valid and of test.
    """
    import pickle

    import sklearn

    task, classifier = best["task"], best["classifier"]
    valid, test = (
        task.scores(task.targets(data[split][1]), predicted[split]) for split in ("valid", "test")
    )
    num_parameters = task.count(classifier)
    of_kind = {}
    if task.kind != CLASSES:  # what earlier versions did not say: they knew no other kind
        of_kind = {
            "kind": task.kind,
            "chosen_by": Choice(task.metric).described(),
            "best_value": best["value"],
            **{f"test_{name}": value for name, value in test.items()},
        }
    return {
        "schema": SCHEMA,
        "data": None,
        "init": "baseline",
        "method": "tfidf",
        "seed": 1,
        "arch": "tfidf",
        "base": None,
        "method_config": {**best["setting"], "ngram_range": list(best["setting"]["ngram_range"])},
        "labels": task.names,
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
        "valid_accuracy": valid.get("accuracy"),
        "test_accuracy": test.get("accuracy"),
        "test_macro_f1": test.get("macro_f1"),
        "test_mcc": test.get("mcc"),
        **of_kind,
        "best_test_epoch": None,
        "best_test_accuracy": None,
        "seconds": None,
        "train_seconds": best["train_seconds"],
        "tokens_per_second": None,
        "peak_memory_bytes": None,
        "curve": [],
    }
