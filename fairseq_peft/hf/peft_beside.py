"""The library's models that a folder of Hugging Face PEFT stands beside, and how its names are made
there: RoBERTa, which classifies; fairseq's encoder-decoders, which write text; and the library's
own models (``--arch hf_causal_lm``, ``hf_seq2seq``), whose names are the same here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from fairseq_peft.errors import InputError
from fairseq_peft.hf import weights
from fairseq_peft.injection.family import Family, Map
from fairseq_peft.methods.ia3 import NONE
from fairseq_peft.models import hf_models, roberta, transformer


class Beside(NamedTuple):
    """A kind of model.

    Attributes:
        family: ours.
        task_type: what PEFT calls its task.
        advice: of a folder with another one.
        to_hf: our name of a module or a tensor -> theirs.
        before_end: what comes before the end of a whole name of theirs, a regular expression.
        layers: their name of the list of layers.
        has_embeddings: whether the token embedding can be adapted there.
        types: the values of ``peft_type`` that go both ways.
        reasons: method, or a flag and its value -> why it stays here.
        targets, feedforward: what PEFT adapts where the config does not say.
        saved: names in ``modules_to_save`` that mean the classifier.
        transposed: whether the library keeps the weights of maps as (in, out).
    """

    family: Family
    task_type: str
    advice: str
    to_hf: Callable
    before_end: str
    layers: str
    has_embeddings: bool
    types: tuple[str, ...]
    reasons: dict
    targets: dict
    feedforward: list
    saved: frozenset
    transposed: bool = False

    def end(self, name: str) -> str:
        """``attention.output.dense`` or ``query`` of a whole name of theirs."""
        return re.sub(self.before_end, "", name)


#: Method -> why it stays here, whatever the model.
_REASONS = {
    "adalora": "PEFT's AdaLoRA has no place for the importances of its ranks",
    "vera": "PEFT's folders of VeRA are not written here",
    "oft": "PEFT's folders of OFT are not written here",
    "head_only": "without a method there is no adapter, only a classifier",
    "full": "all of the model has trained, which is no adapter",
}

ROBERTA = Beside(
    family=roberta.FAMILY,
    task_type="SEQ_CLS",
    advice="here adapters of a RoBERTa classify",
    to_hf=weights.to_hf,
    before_end=r"^roberta\.(encoder\.layer\.\d+\.(attention\.self\.)?|embeddings\.)",
    layers="layer",
    has_embeddings=True,
    types=("LORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING"),
    reasons=_REASONS,
    targets={"LORA": ["query", "value"], "IA3": ["key", "value", "output.dense"]},
    feedforward=["output.dense"],
    saved=frozenset(("classifier", "score")),
)
ENCODER_DECODER = Beside(
    family=transformer.FAMILY,
    task_type="SEQ_2_SEQ_LM",
    advice="here adapters of an encoder-decoder write text",
    to_hf=lambda name, head=None: f"model.{name}",
    before_end=r"^model\.(encoder|decoder)\.layers\.\d+\.((self|encoder)_attn\.)?",
    layers="layers",
    has_embeddings=False,
    types=("LORA", "IA3", "PROMPT_TUNING"),
    reasons={
        **_REASONS,
        # And the decoder's layer l reads the vectors of layer 2 l mod L: of an even number of
        # layers half of what PEFT keeps is read twice, and half never.
        "prefix": "PEFT's prefixes stand in the decoder alone, where two layers share one, ours in "
        "every attention",
        "--lora-bias all": "PEFT saves the bias of the logits with all others, and there is none "
        "here",
        "--peft-targets embed_tokens": "the library has one table of words under several names, "
        "and PEFT's LoRA on one of them leaves the others as they are",
    },
    # PEFT's on BART; of mBART and M2M-100 it has none.
    targets={"LORA": ["q_proj", "v_proj"], "IA3": ["q_proj", "v_proj", "fc2"]},
    feedforward=["fc2"],
    saved=frozenset(),
)


def of(model) -> Beside:
    """What a folder of PEFT for ``model`` stands beside.

    Raises:
        InputError: there is no such folder.
    """
    if isinstance(model, hf_models.HFModel):
        return _of_folder(model)
    for beside in (ROBERTA, ENCODER_DECODER):
        if model.family == beside.family:
            return beside
    raise InputError(
        f"--arch {model.args._name} has no counterpart here to put a folder of PEFT beside: models "
        "of RoBERTa, BART, mBART and M2M-100 have. fairseq-peft merge makes a plain model of it."
    )


def _of_folder(model) -> Beside:
    """Of one of the library's own models."""
    family = model.family
    causal = isinstance(model, hf_models.HFCausalLM)
    prefixes = causal and family.learned_positions
    words = family.embedding.rpartition(".")[2]
    reasons = {
        **_REASONS,
        "--lora-bias all": "PEFT's takes every tensor with bias in its name, norms' and tables' "
        "among them",
        f"--peft-targets {words}": "PEFT's LoRA on the table of words leaves the output that is "
        "tied to it as it is",
    }
    if not causal:
        reasons["prefix"] = ENCODER_DECODER.reasons["prefix"]
    elif not prefixes:
        reasons["prefix"] = "PEFT's takes positions from the text, and this model's takes none"
    own = {flag: family.defaults[flag].split(",") for flag in ("peft_targets", "ia3_targets")}
    maps = [m for stack in family.stacks for block in stack.blocks for m in block.maps]
    return Beside(
        family=family,
        task_type="CAUSAL_LM" if causal else "SEQ_2_SEQ_LM",
        advice=f"{model.arch} writes text",
        to_hf=lambda name, head=None: name[len("hf.") :],
        before_end=r"^.*\.",
        layers=family.stacks[0].layers.rpartition(".")[2],
        has_embeddings=False,
        types=("LORA", "IA3", "PROMPT_TUNING", *("PREFIX_TUNING",) * prefixes),
        reasons=reasons,
        targets={"LORA": own["peft_targets"], "IA3": own["ia3_targets"]},
        feedforward=[w for w in family.defaults["ia3_feedforward"].split(",") if w != NONE],
        saved=frozenset(),
        transposed=any(isinstance(m, Map) and m.transposed for m in maps),
    )
