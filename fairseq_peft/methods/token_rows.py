"""Rows of the token embedding that train alone, beside any method: ``--peft-train-tokens``.

    y = E[x] + U[i] where x is the i-th named token, E[x] elsewhere

E (V, C) is the base's, frozen; U (k, C) starts at zero, so the start is the base, bit for bit.
Where the output matrix is E, too, the logits of the named tokens get U h. Gradients and the
optimizer's state are those of k rows, not of V. Trainable: k C. Merges: E[ids] + U.

It is no method to choose: ``methods.setting`` puts it beside the chosen ones where the flag is
given. A new language is a new token: ``fairseq-peft add-tokens``
gives a base a row for it. Shape letters: V rows of the embedding, C model dim, k named tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.injection.family import join
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import low_rank

FLAG = "peft_train_tokens"


@dataclass
class TokenRowsConfig:
    """The tokens, by the names that the dictionary has for them."""

    tokens: str = field(
        default="",
        metadata={
            "flag": FLAG,
            "help": "tokens of the dictionary, with commas, whose rows of the embedding train, "
            "such as that of a language (none)",
        },
    )

    def names(self) -> list[str]:
        """The tokens one by one.

        Raises:
            InputError: one is named twice, or none is.
        """
        found = [name.strip() for name in self.tokens.split(",")]
        if not all(found) or len(set(found)) < len(found):
            raise InputError(
                f"--peft-train-tokens {self.tokens!r} names a token twice, or none between two "
                "commas. Name each once."
            )
        return found


class TokenRows(nn.Embedding):
    """``y = E[x] + U[i]`` where x is ``token_ids[i]``.

    Shapes: x (...) -> y (..., C); token_update (k, C); token_ids (k,); E (V, C).
    It holds the base's own ``weight``, so an output that shares it still does; ``project`` is what
    that output has to add.
    """

    def __init__(self, base: nn.Embedding, ids: list[int]):
        super().__init__(base.num_embeddings, base.embedding_dim, base.padding_idx, device="meta")
        self.weight = base.weight
        self.register_buffer("token_ids", torch.tensor(ids))
        self.token_update = nn.Parameter(base.weight.new_zeros(len(ids), base.embedding_dim))

    def forward(self, x):
        named = (x[..., None] == self.token_ids).to(self.token_update)  # (..., k)
        return super().forward(x) + named @ self.token_update

    def project(self, features):
        """What the rows add to the logits: features (..., C) -> (..., V)."""
        own = F.linear(features, self.token_update)
        whole = own.new_zeros(*own.shape[:-1], self.num_embeddings)
        return whole.index_add(-1, self.token_ids, own)

    @torch.no_grad()
    def merge_(self) -> nn.Embedding:
        """Write the rows into E, in place, because the output shares the tensor; a plain embedding
        around E."""
        rows = self.weight[self.token_ids].float() + self.token_update.float()
        self.weight[self.token_ids] = rows.to(self.weight)
        plain = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta"
        )
        plain.weight = self.weight
        return plain


class TrainTokens(Method):
    """The named rows of every table of words that has them."""

    name = "tokens"
    summary = "rows of the embedding train alone"
    mergeable = True
    stage = 1
    Config = TokenRowsConfig

    def inject(self, model, family, generator):
        names, known = self.config.names(), set()
        for path, embedding in surgery.embeddings(model, family).items():
            if type(embedding) is not nn.Embedding:
                raise InputError(
                    f"--peft-train-tokens: --peft-targets adapts {path} as a whole already. Leave "
                    "the embedding out of the targets, or this flag."
                )
            own = _ids(model, family, path, names)
            known.update(own)
            if own:
                rows = TokenRows(embedding, list(own.values()))
                low_rank.set_output_update(model, rows, rows.project)
                surgery.swap(model, family.path(path), rows)
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(
                f"--peft-train-tokens {','.join(missing)}: the dictionary has no such token. Give "
                "the base a row for it (fairseq-peft add-tokens), and the data its new dict.txt."
            )

    def frozen_base_names(self, model, family):
        return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, TokenRows)}

    def count(self, dims):
        count = Count()
        for rows, columns in dims.embeddings().values():
            count.add("tokens", f"{min(len(self.config.names()), rows)} x {columns}")
        return count

    def buffer_bytes(self, dims):
        return 8 * len(self.config.names()) * len(dims.embeddings())

    def merge(self, model, family):
        for name, module in list(model.named_modules()):
            if isinstance(module, TokenRows):
                low_rank.set_output_update(model, module, None)
                surgery.swap(model, name, module.merge_())


def _ids(model, family, path, names) -> dict[str, int]:
    """Name -> row, for those of ``names`` that the dictionary of a table has. A model that is
    rebuilt without its dictionary (``checkpoints.finetuned.placeholder``) gets them from its own
    checkpoint.

    Raises:
        InputError: there is no dictionary, or one is padding.
    """
    (stack,) = (s for s in family.stacks if s.embedding and join(s.path, s.embedding) == path)
    owner = model.get_submodule(family.path(stack.path))
    words = getattr(owner, "dictionary", None)
    if words is None:
        raise InputError(
            "--peft-train-tokens is for models with a dictionary of fairseq's, and the words of "
            "this one are those of a tokenizer. Leave the flag out."
        )
    if getattr(words, "is_placeholder", False):
        return dict.fromkeys(names, words.nspecial)
    if words.pad_word in names:
        raise InputError(
            f"--peft-train-tokens {words.pad_word}: padding is read by nobody, so its row would "
            "not train. Leave it out."
        )
    return {name: words.index(name) for name in names if name in words}
