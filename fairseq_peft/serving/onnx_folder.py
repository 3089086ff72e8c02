"""A classifier as a folder that ONNX Runtime computes, without torch and without fairseq.

    model.onnx             input_ids (B, T), padded at the right -> logits (B, classes)
    tokenizer.json         text -> input_ids, for Hugging Face's tokenizers (tokenizer_config.json)
    classifier.json        what the logits mean: labels in their order, kind, max_tokens, padding

A method that can be merged is merged before; any other is in the graph as it is. Both axes of
input_ids are free. What is written is computed, and held against the model, before it is there.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fairseq_peft import folders
from fairseq_peft.adapters.folder import AdapterFolder
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.data.buckets import bucket_batches
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_text
from fairseq_peft.hf import tokenizer
from fairseq_peft.models.roberta import RobertaPeftModel
from fairseq_peft.serving import onnx_int8, served
from fairseq_peft.serving.agreement import Agreement, compare
from fairseq_peft.serving.predict import answer

MODEL, DESCRIPTION = "model.onnx", "classifier.json"
#: How far a probability in fp32 may be from the model's: rounding is far below.
LIMIT = 1e-4
#: Rows that are compared at once.
BATCH_SIZE = 16


class Scores(nn.Module):
    """input_ids (B, T) -> logits (B, classes), of one head."""

    def __init__(self, model: RobertaPeftModel, head: str):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, input_ids):
        found, _ = self.model(input_ids, features_only=True, classification_head_name=self.head)
        return found


def write(
    out: Path, found: AdapterFolder, model, texts: Sequence = (), int8: bool = False
) -> Agreement:
    """Write the folder ``out``.

    Args:
        found, model: an adapter folder, and the model that it makes of its base.
        texts: rows to compare on, each a text, or a pair of them where the model reads two; without
            any, random tokens are.
        int8: whether products compute in 8 bits; the first of the rows tell how large numbers
            become.

    Returns:
        How far ONNX Runtime agrees with the model in fp32.

    Raises:
        InputError: a package is missing, or the model cannot go there.
        RuntimeError: what ONNX Runtime computes in fp32 is something else.
    """
    runtime = load_runtime()
    if not isinstance(model, RobertaPeftModel):
        raise InputError(f"{found.folder} is no RoBERTa: only those are written as ONNX.")
    if not found.description["input"]["begin"]:
        raise InputError(
            f"{found.folder} was trained with --no-init-token, and the tokenizer beside model.onnx "
            "begins each text with <s>. Use fairseq-peft predict."
        )
    reader = served.read_folder(found)
    dictionary = reader.encoder.dictionary
    contents = tokenizer.contents(found.subwords(), dictionary.symbols, reader.max_tokens)
    contents[DESCRIPTION] = {
        "labels": list(reader.labels),
        "kind": reader.kind,
        "max_tokens": reader.max_tokens,
        "num_texts": reader.num_texts,
        "padding": dictionary.pad(),
    }
    scores = Scores(model.eval(), found.description["head"]["name"])
    rows = [row for batch in batches(reader, texts, dictionary) for row in batch]
    expected = [predicted(reader, logits) for logits in compute(scores, rows, dictionary.pad())]
    with contextlib.suppress(InputError):  # what cannot be merged is in the graph as it is
        model.merge()
    with folders.replaced(out) as new:
        for name, value in contents.items():
            text = json_text(value, indent=1) + "\n"
            (new / name).write_text(value if isinstance(value, str) else text, encoding="utf-8")
        to_onnx(scores, new / MODEL, reader.max_tokens)
        if int8:
            with quiet():
                onnx_int8.write(new / MODEL, [np.array([row]) for row in rows[: onnx_int8.ROWS]])
        session = runtime.InferenceSession(str(new / MODEL), providers=["CPUExecutionProvider"])

        def run(tokens):
            return torch.from_numpy(session.run(None, {"input_ids": tokens.numpy()})[0])

        found_rows = [predicted(reader, logits) for logits in compute(run, rows, dictionary.pad())]
        agreement = compare(expected, found_rows)
        if not int8 and not agreement.largest <= LIMIT:
            raise RuntimeError(
                f"ONNX Runtime computes something else, nothing written: {agreement}"
            )
    return agreement


def load_runtime():
    """The module ``onnxruntime``.

    Raises:
        InputError: a package is missing or too old.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--format onnx needs the package {error.name}, which is not installed: pip install "
            "'fairseq-peft[onnx]'."
        ) from error
    if "external_data" not in inspect.signature(torch.onnx.export).parameters:
        raise InputError(f"--format onnx needs torch 2.6 or newer; this is {torch.__version__}.")
    return onnxruntime


def batches(reader, texts, dictionary) -> Iterator[list]:
    """Rows of tokens to compare on: lists of them."""
    if not texts:
        pad = dictionary.pad()
        for tokens in finetuned.random_batches(dictionary, reader.max_tokens):
            yield [row[row != pad].tolist() for row in tokens]
        return
    rows = [reader.check(row, number) for number, row in enumerate(texts, start=1)]
    yield reader.encoder.items(rows, [reader.max_tokens] * len(rows))


@torch.no_grad()
def compute(scores, rows: Sequence[Sequence[int]], padding: int) -> list[torch.Tensor]:
    """The logits (classes,) of each row, of a function of input_ids (B, T)."""
    found = [None] * len(rows)
    for batch in bucket_batches(np.array([len(row) for row in rows]), BATCH_SIZE):
        tokens = torch.full((len(batch), max(len(rows[i]) for i in batch)), padding)
        for line, i in zip(tokens, batch):
            line[: len(rows[i])] = torch.as_tensor(rows[i])
        for i, logits in zip(batch, scores(tokens)):
            found[i] = logits
    return found


def predicted(reader, logits: torch.Tensor):
    """What logits (classes,) say of a row."""
    return answer(logits, reader.labels, reader.kind)


def to_onnx(scores: Scores, path: Path, max_tokens: int) -> None:
    """Write the graph, in one file."""
    dim = torch.export.Dim
    shapes = {"input_ids": {0: dim("rows"), 1: dim("tokens", max=max_tokens)}}
    example = torch.full((3, min(7, max_tokens)), 4)
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            scores,
            (example,),
            str(path),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def quiet():
    """Without what torch and ONNX Runtime tell of each step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
