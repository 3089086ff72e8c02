"""What the frozen features of a model know of a task: a linear classifier on each layer's.

Nothing of the model trains. Its features of ``train`` are standardised, and logistic regression
learns from them; ``valid`` chooses how strongly it is regularised, and ``test`` is only measured.

Shape letters: B batch, T tokens, N rows, C model dim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import slim
from fairseq_peft.data import checks
from fairseq_peft.data.buckets import bucket_batches
from fairseq_peft.data.sentence_dataset import SentenceDataset
from fairseq_peft.errors import InputError
from fairseq_peft.hf import base_model
from fairseq_peft.models import heads
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.text.kinds import check_classes

logger = logging.getLogger(__name__)

#: Of logistic regression ("C" in scikit-learn): the smaller, the stronger the penalty. Larger ones
#: fit a few thousand rows by heart: on cls-books they won on valid, 400 rows, and lost on test.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
#: Levels below the layers, from the bottom up; there, ``<s>`` has the same features in every row.
BELOW = ("tokens", "embedding")
#: Largest batch, in tokens with padding.
MAX_TOKENS = 4096


class Cell(NamedTuple):
    """What one kind of features knows.

    Attributes:
        level: ``tokens`` (the token embeddings), ``embedding`` (with positions and layer norm, what
            the first layer reads), ``layer 1`` and so on.
        pooler: as ``--pooler``.
        strength: the one of ``STRENGTHS`` that ``valid`` chose.
        accuracy: split -> fraction, for each split but train.
    """

    level: str
    pooler: str
    strength: float
    accuracy: dict[str, float]


# ---- Models --------------------------------------------------------------------------------------


def read(path: Path, words, data: Path, trust: bool = False, precision: str = "fp32"):
    """The model of a checkpoint, in eval mode.

    Args:
        words: the dictionary of ``data``, which has to be the model's.
        trust: as ``checkpoint_file.read`` takes it.

    Raises:
        InputError: it cannot be read, is no plain RoBERTa, or has another dictionary.
    """
    name = f"{data}/input0/dict.txt"
    state = slim.read(str(path), trust=trust)
    weights = adapter_folder.renamed(state["model"])
    flags = {**base_model.flags(path, state, weights), "precision": precision}
    num_rows = len(weights["encoder.sentence_encoder.embed_tokens.weight"])
    if len(words) != num_rows:
        raise InputError(
            f"{name} gives {len(words)} rows with <mask>, and {path} has {num_rows}. Prepare the "
            "data with the checkpoint's own dictionary (scripts/prepare_data.sh)."
        )
    told = (state.get("task_state") or {}).get("dictionary")
    if told not in (None, checks.fingerprint(words)):
        raise InputError(
            f"{name} is not the dictionary that {path} was trained with: prepare the data with "
            "that one (scripts/prepare_data.sh)."
        )
    checks.check_beside(str(path), words, name)
    head = next((key[len(HEADS) :].split(".")[0] for key in weights if key.startswith(HEADS)), None)
    try:
        return base_model.load(base_model.Base(state, weights, flags, words), head)
    except InputError as error:
        raise InputError(
            f"{path}: {error} Only plain models are probed: give the base of a method, or what "
            "fairseq-peft merge makes of a checkpoint."
        ) from error


def untrained(arch: str, words, seed: int, embeddings: str = "", precision: str = "fp32"):
    """A model with random weights, in eval mode.

    Args:
        embeddings: file of token embeddings to start from, as ``--init-embeddings``; "" for none.

    Raises:
        InputError: the file cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        more = {"init_embeddings": embeddings, "precision": precision}
        return base_model.build({"_name": arch}, words, seed, **more).eval()


# ---- Data ----------------------------------------------------------------------------------------


def read_dictionary(data: Path):
    """The dictionary of a folder's text, with ``<mask>``.

    Raises:
        InputError: it is missing or malformed.
    """
    words = checks.load_dictionary(str(data / "input0" / "dict.txt"))
    words.add_symbol("<mask>")
    return words


def load_data(data: Path, words, max_tokens: int):
    """Class names, and split -> data set, read, checked and cut as fine-tuning does it; ``test`` is
    there if the folder has it.

    Raises:
        InputError: a split is missing or damaged, or train has rows of one class only.
    """
    check_classes(data, "the probe")
    labels = checks.class_names(checks.load_dictionary(str(data / "label" / "dict.txt")))
    datasets = {}
    for split in ("train", "valid", "test"):
        if not any((data / "input0").glob(f"{split}.*")):
            if split == "test":
                continue
            raise InputError(
                f"{data} has no split {split!r}: the probe learns from train and is chosen on "
                "valid. Prepare it (scripts/prepare_data.sh)."
            )
        texts, targets = checks.load_split(str(data), split, words, labels)
        datasets[split] = SentenceDataset(texts, targets, words, max_tokens)
    seen = np.unique(datasets["train"].targets)
    if len(seen) == 1:
        raise InputError(
            f"{data}: train has only the class {labels[seen[0]]!r}; a classifier needs at least 2. "
            "Prepare the data with rows of each."
        )
    return labels, datasets


def majority(datasets: Mapping[str, SentenceDataset]) -> dict[str, float]:
    """Accuracy, on each split but train, of always answering the class most frequent in train."""
    answer = np.bincount(datasets["train"].targets).argmax()
    return {
        split: float((dataset.targets == answer).mean())
        for split, dataset in datasets.items()
        if split != "train"
    }


# ---- Features ------------------------------------------------------------------------------------


def levels(model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Level -> features (B, T, C) in fp32 of tokens (B, T), from the bottom up.

    The last layer's are those that a head reads, behind the final norm where there is one.
    """
    with torch.no_grad():
        out = model.encoder.sentence_encoder(tokens, return_all_hiddens=True)
    embedding, *layers = (state.transpose(0, 1).float() for state in out["encoder_states"])
    layers[-1] = out["encoder_out"][0].transpose(0, 1)
    found = dict(zip(BELOW, (out["encoder_embedding"][0], embedding)))
    return {**found, **{f"layer {i}": layer for i, layer in enumerate(layers, start=1)}}


def features(model, dataset: SentenceDataset) -> dict[tuple[str, str], np.ndarray]:
    """(level, pooler) -> (N, C) float32, a row of it for each row of the data, in their order."""
    found = {}
    for batch in bucket_batches(dataset.sizes, max_tokens=MAX_TOKENS):
        tokens = dataset.collater([dataset[i] for i in batch])["net_input"]["src_tokens"]
        text = tokens.ne(dataset.pad)
        for level, x in levels(model, tokens).items():
            for pooler in heads.POOLERS:
                if level in BELOW and pooler == "first":
                    continue
                if (level, pooler) not in found:
                    found[level, pooler] = np.empty((len(dataset), x.shape[-1]), np.float32)
                found[level, pooler][batch] = heads.pool(x, text, pooler).squeeze(1).numpy()
    return found


# ---- Classifiers ---------------------------------------------------------------------------------


def run(model, datasets: Mapping[str, SentenceDataset]) -> list[Cell]:
    """A classifier for each level and pooler, from the bottom up."""
    import sklearn.linear_model  # noqa: F401  the limit holds only for BLAS libraries loaded by now
    from threadpoolctl import threadpool_limits

    found = {}
    for split, dataset in datasets.items():
        started = time.perf_counter()
        found[split] = features(model, dataset)
        seconds = time.perf_counter() - started
        logger.info("features of %s: %s rows, %.1f s", split, f"{len(dataset):,}", seconds)
    targets = {split: dataset.targets for split, dataset in datasets.items()}
    started = time.perf_counter()
    cells = []
    with threadpool_limits(1):  # more threads are slower on problems this small
        for level, pooler in found["train"]:
            own = {split: own[level, pooler] for split, own in found.items()}
            cells.append(Cell(level, pooler, *fit(own, targets)))
    logger.info("%d classifiers, %.1f s", len(cells), time.perf_counter() - started)
    return cells


def fit(features: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]):
    """Logistic regression on ``train``.

    Args:
        features, targets: split -> (N, C) and (N,).

    Returns:
        the one of ``STRENGTHS`` with the highest accuracy on ``valid``, the smallest on ties; and
        split -> accuracy with it, for each split but train.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    # In double precision, and with tol so tight that the optimum, not the solver, decides.
    exact = {split: x.astype(np.float64) for split, x in features.items()}
    scaler = StandardScaler().fit(exact["train"])
    scaled = {split: scaler.transform(x) for split, x in exact.items()}
    train = scaled.pop("train")
    # Each strength starts from where the one before has come to.
    classifier = LogisticRegression(tol=1e-6, max_iter=5000, warm_start=True)
    best = None
    for strength in STRENGTHS:
        classifier.set_params(C=strength).fit(train, targets["train"])
        accuracy = {
            split: float(classifier.score(x, targets[split])) for split, x in scaled.items()
        }
        if best is None or accuracy["valid"] > best[1]["valid"]:
            best = strength, accuracy
    return best


def best_of(cells: list[Cell]) -> Cell:
    """The one with the highest accuracy on ``valid``, the lowest level on ties."""
    return max(cells, key=lambda cell: cell.accuracy["valid"])
