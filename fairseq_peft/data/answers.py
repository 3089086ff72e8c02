"""Rows of a prompt and an answer, as token ids, and batches of them.

Shape letters: B rows, S source tokens, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils

from fairseq_peft.data.buckets import width
from fairseq_peft.errors import InputError

#: Up to so many tokens a batch is as wide as its longest row: padding a label of 2 to 8 would cost
#: more than another shape does.
NARROW = 16


@dataclass(frozen=True)
class Layout:
    """How a model reads a row.

    Attributes:
        causal: prompt and answer are one text; else the prompt is the source.
        pad: id of padding, in inputs and in targets, where it is left out of the loss.
        start: id that answers of an encoder-decoder begin with.
        eos: id that ends an answer.
        room: tokens that the model has room for; batches are not rounded up where it is 0.
    """

    causal: bool
    pad: int
    eos: int
    start: int
    room: int = 0

    def batch(self, rows) -> dict:
        """rows, a list of (prompt ids, answer ids) -> ``net_input`` and ``target`` (B, T), the ids
        of the answers and of ``eos`` where they are predicted, padding elsewhere; of a causal model
        ``num_predicted``, the last tokens of T in front of which nothing is."""
        answers = [[*answer, self.eos] for _, answer in rows]
        if self.causal:
            texts = [[*prompt, *answer] for (prompt, _), answer in zip(rows, answers)]
            targets = [
                [self.pad] * (len(text) - 1 - len(answer)) + answer
                for text, answer in zip(texts, answers)
            ]
            inputs = {"src_tokens": self.padded([text[:-1] for text in texts], self.room)}
        else:
            targets = answers
            before = [[self.start, *answer[:-1]] for answer in answers]
            inputs = {
                "src_tokens": self.padded([prompt for prompt, _ in rows], self.room),
                "prev_output_tokens": self.padded(before, self.room),
            }
        lengths = [len(prompt) + self.causal * len(answer) for prompt, answer in rows]
        inputs["src_lengths"] = torch.tensor(lengths)
        batch = {"net_input": inputs, "target": self.padded(targets, self.room)}
        if self.causal:
            first = min(len(prompt) for prompt, _ in rows) - 1
            batch["num_predicted"] = batch["target"].shape[1] - first
        return batch

    def packed(self, rows) -> dict:
        """rows of a causal model -> ``net_input``: all tokens (1, N) one behind the other, how many
        are of each row, and the A places that predict answers and ``eos``; ``target`` (1, A)."""
        tokens, lengths, places, target = [], [], [], []
        for prompt, answer in rows:
            first = len(tokens) + len(prompt) - 1
            places += range(first, first + len(answer) + 1)
            target += [*answer, self.eos]
            tokens += [*prompt, *answer]
            lengths.append(len(prompt) + len(answer))
        inputs = {
            "src_tokens": torch.tensor([tokens]),
            "src_lengths": torch.tensor(lengths),
            "packed": lengths,
            "predicted": torch.tensor(places),
        }
        return {"net_input": inputs, "target": torch.tensor([target])}

    def padded_prompts(self, prompts, room: int = 0) -> torch.Tensor:
        """(B, longest): sources are padded at the right, and rounded up with ``room``; a causal
        model's prompts in front, so that all rows go on at the same place."""
        if not self.causal:
            return self.padded(prompts, room)
        longest = max(map(len, prompts))
        return torch.tensor([[self.pad] * (longest - len(p)) + list(p) for p in prompts])

    def padded(self, rows, room: int = 0) -> torch.Tensor:
        """(B, ``width``), padded at the right."""
        out = torch.full((len(rows), width(max(map(len, rows)), room, NARROW)), self.pad)
        for row, ids in zip(out, rows):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return out


class AnswerDataset(FairseqDataset):
    """Prompts and answers of one split; a batch has, beside fairseq's, its ``rows``.

    Attributes:
        num_cut: rows whose prompt, or answer, was cut at its end.
        pack: whether the rows of a batch are one sequence (``Layout.packed``).
        split: what the split is called.
        targets: (N,) the number of each row's label; None where answers are any text.
        seed: of the order of its rows.
    """

    split, targets, seed = "", None, 1

    def __init__(
        self, rows, layout: Layout, max_prompt: int, max_answer: int, place: str, pack=False
    ):
        """
        Args:
            rows: (prompt ids, answer ids) each.
            max_prompt: room for the prompt alone.
            max_answer: room for the answer, with ``eos``.
            place: what the rows are called in messages.

        Raises:
            InputError: a prompt has no token.
        """
        self.layout, self.rows, self.pack = layout, [], pack
        self._cut = []
        for number, (prompt, answer) in enumerate(rows, 1):
            if not prompt:
                raise InputError(
                    f"{place}, row {number}: the prompt has no token that the tokenizer knows. "
                    "Give a prompt with a token."
                )
            self._cut.append(len(prompt) > max_prompt or len(answer) > max_answer - 1)
            self.rows.append((prompt[:max_prompt], answer[: max_answer - 1]))
        self.sizes = np.array([len(prompt) + len(answer) + 1 for prompt, answer in self.rows])

    @property
    def num_cut(self) -> int:
        return sum(self._cut)

    def keep(self, numbers) -> None:
        """Leave out all rows but these, in their order."""
        self.rows, self._cut = [self.rows[i] for i in numbers], [self._cut[i] for i in numbers]
        self.sizes = self.sizes[numbers]
        self.targets = None if self.targets is None else self.targets[numbers]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return index, self.rows[index]

    def num_tokens(self, index):
        return self.sizes[index]

    size = num_tokens

    def batch_by_size(self, indices, max_tokens=None, **limits):
        """fairseq's, where a row that is longer than ``max_tokens`` is alone."""
        sizes = self.sizes[indices].astype("int64")
        if max_tokens:
            sizes = sizes.clip(max=max_tokens)
        return data_utils.batch_by_size(
            indices, num_tokens_fn=None, num_tokens_vec=sizes, max_tokens=max_tokens, **limits
        )

    def collater(self, samples):
        if not samples:
            return {}
        rows = [row for _, row in samples]
        make = self.layout.packed if self.pack else self.layout.batch
        return {
            **make(rows),
            "id": torch.tensor([index for index, _ in samples]),
            "nsentences": len(rows),
            "ntokens": sum(len(answer) + 1 for _, answer in rows),
            "rows": rows,
        }

    def ordered_indices(self):
        """By length, those of one length in an order that ``seed`` draws. It is the same in all
        epochs, as fairseq keeps the batches of the first one, and shuffles them: so it is in a run
        that goes on, too."""
        with data_utils.numpy_seed(self.seed + 1):
            order = np.random.permutation(len(self))
        return order[np.argsort(self.sizes[order], kind="stable")]
