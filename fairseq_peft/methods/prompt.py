"""Prompt tuning: P trained vectors among the token embeddings of a frozen model.

    <s> t1 t2 ... </s>   ->   <s> p1 ... pP t1 t2 ... </s>      (placement after_bos)
                         ->   p1 ... pP <s> t1 t2 ... </s>      (placement before_bos, as in Hugging
                         Face PEFT)

The vectors stand where word embeddings stand: positions are added to them, and the text moves P
positions on, so it may be P tokens shorter. The head reads what stands first: ``<s>``, or p1 with
``before_bos``.
Starts: ``vocab``, rows of the word embeddings drawn at random; ``text``, those of a text's tokens,
without ``<s>`` and ``</s>``, repeated or cut to P; ``random``, N(0, 0.02), or N(0, 1) for an MLP.
With ``mlp`` the vectors are the output of a two-layer tanh MLP (``reparametrise.py``; prefix
tuning's, Li and Liang 2021, arXiv:2101.00190, section 4.3, at the embeddings), which ``fold``
replaces by its output. The starts are those of its input then.
Trainable: P C; an MLP of hidden size h adds (C + 1) h + (h + 1) C.
There is no start as the identity: prompts change the logits from the first step.

Where the rest is:
    shared/reparametrise.py  the trained vectors, and the MLP that ``fold`` drops
    models/encoder.py        the slot ``soft_prompt``: calls ``insert`` and ``remove``
    methods/base.py          what a method is, and which of its functions is called when

Paper: Lester et al. 2021, arXiv:2104.08691. Shape letters: B batch, T tokens, C model dim, P prompt
tokens.
"""

from dataclasses import dataclass, field, replace

import torch

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import reparametrise

INITS = ("vocab", "text", "random")
PLACEMENTS = ("after_bos", "before_bos")


@dataclass
class PromptConfig:
    """Knobs of prompt tuning."""

    num_tokens: int = field(default=20, metadata={"help": "number P of prompt tokens (20)"})
    init: str = field(
        default="vocab",
        metadata={
            "help": "vocab: copies of word embeddings drawn at random; text: those of the words "
            "of --prompt-init-text; random: N(0, 0.02) (vocab)"
        },
    )
    init_text: str = field(default="", metadata={"help": "text to start from ('')"})
    placement: str = field(
        default="after_bos",
        metadata={"help": "after_bos, or before_bos as in Hugging Face PEFT (after_bos)"},
    )
    mlp: int = field(
        default=0,
        metadata={"help": "hidden size of an MLP behind the vectors, in training; 0 for none (0)"},
    )

    def __post_init__(self):
        reparametrise.check_sizes(self.num_tokens, self.mlp, "prompt")
        for name, value, known in (
            ("init", self.init, INITS),
            ("placement", self.placement, PLACEMENTS),
        ):
            if value not in known:
                raise InputError(
                    f"--prompt-{name} {value!r} is unknown: give one of {', '.join(known)}."
                )
        if self.init == "text" and not self.init_text.strip():
            raise InputError("--prompt-init text needs a text: give it with --prompt-init-text.")
        if self.init != "text" and self.init_text:
            raise InputError(
                f"--prompt-init-text {self.init_text!r} would be ignored: --prompt-init is "
                f"{self.init}. Give --prompt-init text, or leave the text out."
            )


class SoftPrompt(reparametrise.Vectors):
    """The prompt, (P, C), and where it goes; its embeddings are copies of the rows ``vocab_rows``
    if given."""

    def __init__(self, embeddings: torch.Tensor, mlp, placement: str, vocab_rows=None):
        super().__init__(embeddings, mlp)
        self.vocab_rows = vocab_rows
        self.start = 1 if placement == "after_bos" else 0

    def insert(self, x, padding):
        """Put the prompt into x (B, T, C) and padding (B, T): (B, P + T, C) and (B, P + T)."""
        prompt = self.vectors().to(x.dtype).expand(x.shape[0], -1, -1)
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
    logits_at_start = "changed"
    learning_rates = (1e-3, 3e-3, 1e-2)
    Config = PromptConfig

    def inject(self, model, family, generator):
        _, entrance = surgery.entrances(model, family, "soft_prompt")[0]
        table = first_table(model, family)
        num_rows, dim = table.weight.shape
        rows = None
        if self.config.init == "vocab":
            # From 4 on: <s>, <pad>, </s> and <unk> are no words.
            rows = torch.randint(4, num_rows, (self.config.num_tokens,), generator=generator)
            embeddings = table.weight.detach()[rows].clone()
        else:
            # Of a text, too: it is read in `adopt_base`, which a finished model does not call.
            # An MLP wants inputs of size 1.
            std = 1.0 if self.config.mlp else 0.02
            embeddings = reparametrise.normal(self.config.num_tokens, dim, std, generator)
        mlp = reparametrise.mlp(dim, self.config.mlp, dim, generator) if self.config.mlp else None
        prompt = SoftPrompt(embeddings, mlp, self.config.placement, rows)
        surgery.fill(entrance, "soft_prompt", prompt.to(table.weight))

    def check_base(self, model, base):
        if self.config.init == "text":
            text_rows(model, self.config)

    def adopt_base(self, model, family):
        prompt = surgery.entrances(model, family, "soft_prompt")[0][1].soft_prompt
        if self.config.init == "text":
            prompt.vocab_rows = text_rows(model, self.config)
        if prompt.vocab_rows is not None:
            with torch.no_grad():
                rows = first_table(model, family).weight[prompt.vocab_rows]
                prompt.embeddings.copy_(rows)

    def count(self, dims):
        c = dims.embed_dim
        count = Count()
        count.add("prompt", f"{self.config.num_tokens} x {c}")
        if self.config.mlp:
            count.add("prompt mlp", reparametrise.mlp_formula(c, self.config.mlp, c))
        return count

    def fold(self, model):
        for module in model.modules():
            if isinstance(module, SoftPrompt):
                module.fold()
        return PromptTuning(replace(self.config, mlp=0))


def first_table(model, family):
    """The token embedding of the stack that reads the text."""
    return next(iter(surgery.embeddings(model, family).values()))


def text_rows(model, config) -> torch.Tensor:
    """The rows (P,) of the tokens of ``init_text``, repeated or cut as in Hugging Face PEFT.

    Raises:
        InputError: the model cannot read text, or the text has no word that it knows.
    """
    encode = getattr(model, "encode_text", None)
    if encode is None:
        raise InputError(
            "--prompt-init text needs a task that can read text: give --task "
            "sentence_classification, or --prompt-init vocab."
        )
    rows = encode(config.init_text)
    if not any(row >= 4 for row in rows):
        raise InputError(
            f"--prompt-init-text {config.init_text!r} has no word that the dictionary knows. Give "
            "another text, or --prompt-init vocab."
        )
    return torch.tensor((rows * config.num_tokens)[: config.num_tokens])


METHOD = PromptTuning
