"""Prompt tuning: P trained vectors among the token embeddings of a frozen model.

    <s> t1 t2 ... </s>   ->   <s> p1 ... pP t1 t2 ... </s>      (placement after_bos)
                         ->   p1 ... pP <s> t1 t2 ... </s>      (placement before_bos, as in Hugging
                         Face PEFT)

The vectors stand where word embeddings stand: positions are added to them, and the text moves P
positions on, so it may be P tokens shorter. The head reads what stands first: ``<s>``, or p1 with
``before_bos``.
Trainable: P C.
There is no start as the identity: prompts change the logits from the first step.

Paper: Lester et al. 2021, arXiv:2104.08691. Shape letters: B batch, T tokens, C model dim, P prompt
tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import Method

INITS = ("vocab", "random")
PLACEMENTS = ("after_bos", "before_bos")


@dataclass
class PromptConfig:
    """Knobs of prompt tuning."""

    num_tokens: int = field(default=20, metadata={"help": "number P of prompt tokens (20)"})
    init: str = field(
        default="vocab",
        metadata={
            "help": "vocab: copies of word embeddings drawn at random; random: N(0, 0.02) (vocab)"
        },
    )
    placement: str = field(
        default="after_bos",
        metadata={"help": "after_bos, or before_bos as in Hugging Face PEFT (after_bos)"},
    )

    def __post_init__(self):
        if self.num_tokens < 1:
            raise InputError(
                f"--prompt-num-tokens {self.num_tokens} is no prompt: give an integer of at "
                "least 1."
            )
        if self.init not in INITS:
            raise InputError(
                f"--prompt-init {self.init!r} is unknown: give one of {', '.join(INITS)}."
            )
        if self.placement not in PLACEMENTS:
            raise InputError(
                f"--prompt-placement {self.placement!r} is unknown: give one of "
                f"{', '.join(PLACEMENTS)}."
            )


class SoftPrompt(nn.Module):
    """The prompt and where it goes; ``embeddings`` is (P, C), copies of the rows ``vocab_rows``
    if given."""

    def __init__(self, embeddings: torch.Tensor, placement: str, vocab_rows=None):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)
        self.vocab_rows = vocab_rows
        self.start = 1 if placement == "after_bos" else 0

    @property
    def num_tokens(self) -> int:
        return self.embeddings.shape[0]

    def insert(self, x, padding):
        """Put the prompt into x (B, T, C) and padding (B, T): (B, P + T, C) and (B, P + T)."""
        prompt = self.embeddings.to(x.dtype).expand(x.shape[0], -1, -1)
        seen = padding.new_zeros(x.shape[0], self.num_tokens)
        x = torch.cat([x[:, : self.start], prompt, x[:, self.start :]], dim=1)
        padding = torch.cat([padding[:, : self.start], seen, padding[:, self.start :]], dim=1)
        return x, padding

    def remove(self, x):
        """The features (B, P + T, C) as (B, T, C): what stands first, then those of the tokens
        after ``<s>``."""
        return torch.cat([x[:, :1], x[:, 1 + self.num_tokens :]], dim=1)


class PromptTuning(Method):
    """Soft tokens at the embedding layer."""

    name = "prompt"
    summary = "trained vectors among the token embeddings"
    paper = "Lester et al. 2021, arXiv:2104.08691"
    starts_as_base = "no"
    learning_rates = (1e-3, 3e-3, 1e-2)
    Config = PromptConfig

    def inject(self, model, family, config, generator):
        embedder = model.get_submodule(family.root)
        table = embedder.embed_tokens.weight.detach()
        if config.init == "vocab":
            # From 4 on: <s>, <pad>, </s> and <unk> are no words.
            rows = torch.randint(4, table.shape[0], (config.num_tokens,), generator=generator)
            embeddings = table[rows].clone()
        else:
            rows = None
            embeddings = torch.empty(config.num_tokens, table.shape[1]).normal_(
                0, 0.02, generator=generator
            )
        embedder.soft_prompt = SoftPrompt(embeddings.to(table), config.placement, rows)

    def adopt_base(self, model, family, config):
        embedder = model.get_submodule(family.root)
        prompt = embedder.soft_prompt
        if prompt.vocab_rows is not None:
            with torch.no_grad():
                prompt.embeddings.copy_(embedder.embed_tokens.weight[prompt.vocab_rows])

    def count(self, dims, config):
        count = Count()
        count.add("prompt", f"{config.num_tokens} x {dims.embed_dim}")
        return count


METHOD = PromptTuning()
