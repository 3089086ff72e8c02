"""fairseq's decoder-only language model with any method injected.

``--arch transformer_lm_<method>`` has the sizes of its base, and from scratch fairseq's default
ones; every other size of fairseq's goes by its name and ``_peft``: ``--arch
transformer_lm_gpt2_small_peft --peft lora``. It trains with fairseq's own task and criterion:

    fairseq-train data --user-dir fairseq_peft --task language_modeling \\
        --arch transformer_lm_lora --finetune-from-model base.pt ...
"""

from __future__ import annotations

import argparse

from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig

from fairseq_peft import methods
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Family
from fairseq_peft.models import sizes
from fairseq_peft.models.decoder import STACK, Decoder
from fairseq_peft.models.options import (
    COMMON,
    TEXT,
    config_class,
    decide_precision,
    fill,
    namespace,
)
from fairseq_peft.models.peft_model import PeftModel
from fairseq_peft.models.sizes import Size

FAMILY = Family("decoder", (STACK,))

#: Flags that follow from ``decoder_embed_dim``, which a flag may change.
_FOLLOW = ("decoder_input_dim", "decoder_output_dim")
_WORDS = "decoder.embed_tokens.weight"
_LAST_NORM = "decoder.layer_norm.weight"
_POSITIONS = "decoder.embed_positions.weight"


def _shares_words(tensors):
    """False where the output has a matrix of its own; equal ones may be one or two."""
    untied = sizes.is_untied("decoder.output_projection.weight", _WORDS)(tensors)
    return False if untied else None


#: What a language model's base decides.
BASE_SIZES = sizes.BaseSizes(
    Size("decoder_layers", sizes.num_layers("decoder.layers.")),
    Size("decoder_embed_dim", sizes.num_columns("decoder.layers.0.fc1.weight")),
    Size("decoder_input_dim", sizes.num_columns(_WORDS)),
    Size("decoder_output_dim", sizes.num_columns(_WORDS)),
    Size("decoder_ffn_embed_dim", sizes.num_rows("decoder.layers.0.fc1.weight")),
    Size("decoder_attention_heads", divides="decoder_embed_dim"),
    Size("decoder_learned_pos", sizes.is_there(_POSITIONS)),
    Size("max_target_positions", sizes.num_rows(_POSITIONS, less=2), asked=False),
    Size("layernorm_embedding", sizes.is_there("decoder.layernorm_embedding.weight")),
    Size("share_decoder_input_output_embed", _shares_words, default=False),
    Size("no_token_positional_embeddings", default=False),
    Size("no_scale_embedding", default=False),
    # Without a last norm, layers may have theirs before or behind: args tell.
    Size("decoder_normalize_before", sizes.if_there(_LAST_NORM, True), default=False),
    Size("no_decoder_final_norm", sizes.if_there(_LAST_NORM, False), default=False),
    Size("activation_fn", default="relu"),
    words=_WORDS,
    names=dict,
    kind="language model",
)

TransformerLMPeftConfig = config_class(
    "TransformerLMPeftConfig", {**TEXT, **COMMON}, TransformerLanguageModelConfig
)

_NO_TABLE = "the words then have no single table, which methods and the output share"
_NOT_COMPUTED = "the layers of this model do not compute it"
#: Flags of fairseq's language model that this one does not know -> why.
REFUSED = {
    **dict.fromkeys(("adaptive_input", "character_embeddings"), _NO_TABLE),
    **dict.fromkeys(("adaptive_softmax_cutoff", "tie_adaptive_weights"), _NO_TABLE),
    **dict.fromkeys(("decoder_layerdrop", "decoder_layers_to_keep", "base_layers"), _NOT_COMPUTED),
    **dict.fromkeys(("quant_noise_pq", "quant_noise_scalar"), _NOT_COMPUTED),
    **dict.fromkeys(("checkpoint_activations", "decoder_xformers_att_config"), _NOT_COMPUTED),
    **dict.fromkeys(("scale_fc", "scale_attn", "scale_heads", "scale_resids"), _NOT_COMPUTED),
}


@register_model("transformer_lm_peft", dataclass=TransformerLMPeftConfig)
class TransformerLMPeftModel(PeftModel, TransformerLanguageModel):
    """fairseq's decoder-only language model with methods of ``fairseq_peft.methods`` injected."""

    family = FAMILY
    base_sizes = BASE_SIZES
    classification_heads = {}  # a classifier has some; what writes checkpoints asks for them
    untold = (
        "which fairseq's tasks do not tell it: here it would train as something else. Choose "
        "another method."
    )

    @classmethod
    def build_model(cls, cfg, task):
        """Build the plain model, then inject the method; seeds come from the task.

        Raises:
            InputError: the flags mean a model, or a method, that is not for this family.
        """
        flags = {**TEXT, **COMMON}
        args = namespace(cfg, {name: default for name, (_, default, _) in flags.items()})
        if getattr(args, "max_target_positions", None) is None:
            args.max_target_positions = args.tokens_per_sample
        check(args)
        decide_precision(args)
        words = task.source_dictionary
        embed_tokens = cls.build_embedding(args, words, args.decoder_embed_dim)
        model = cls(Decoder(args, task.target_dictionary, embed_tokens))
        model.args = args
        model.set_up(args, task)
        if model.setting.name == "head_only":
            raise InputError(
                "--peft head_only trains a classification head alone, and a language model has "
                "none: nothing would train. Choose another method."
            )
        room = model.max_positions()
        if model.decoder.num_reserved and args.tokens_per_sample > room:
            raise InputError(
                f"--tokens-per-sample {args.tokens_per_sample} and {model.decoder.num_reserved} "
                f"prompt or prefix tokens are more than the {args.max_target_positions} positions "
                f"of the model. Give --tokens-per-sample {room}, and --max-target-positions "
                f"{args.max_target_positions}."
            )
        return model

    @property
    def dictionary(self):
        """The words."""
        return self.decoder.dictionary

    @property
    def longest_text(self) -> int:
        """The tokens that there is room for, beside what methods take."""
        return self.max_positions()

    @property
    def num_reserved(self) -> int:
        """Positions that the methods take from the text."""
        return self.decoder.num_reserved


def check(args) -> None:
    """Raise InputError where ``args`` mean a model that this file does not build."""
    for name, reason in REFUSED.items():
        if getattr(args, name, None):
            raise InputError(
                f"--{name.replace('_', '-')} is not for --arch transformer_lm_*: {reason}. Leave "
                "it out, or choose another architecture."
            )
    c, heads = args.decoder_embed_dim, args.decoder_attention_heads
    if c % heads:
        raise InputError(
            f"--decoder-embed-dim {c} does not divide into --decoder-attention-heads {heads} "
            "heads: give a multiple."
        )
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if getattr(args, name) != c:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(args, name)} is not --decoder-embed-dim {c}: "
                "a map between words and layers is not for this model. Give the same for both, and "
                "a base that was trained so."
            )


def _architecture(name: str, stock: str, peft: str | None):
    """What completes the flags of ``--arch name``, a size that fairseq calls ``stock``."""

    def complete(args):
        sizes.from_start(args, BASE_SIZES, name)
        fill(args, {"peft": peft} if peft else {})
        ARCH_CONFIG_REGISTRY[stock](args)

    return complete


def _register_architectures():
    names = {}
    for size in ARCH_MODEL_INV_REGISTRY["transformer_lm"]:
        args = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[size](args)
        if size != "transformer_lm" and not any(getattr(args, flag, None) for flag in REFUSED):
            names[f"{size}_peft"] = (size, None)
            told = {flag for flag in vars(args) if flag not in _FOLLOW}
            own = {s.flag: getattr(args, s.flag) for s in BASE_SIZES.sizes if s.flag in told}
            BASE_SIZES.name(f"{size}_peft", "transformer_lm_peft", own)
    for method in methods.available():
        names[f"transformer_lm_{method}"] = ("transformer_lm", method)
        BASE_SIZES.name(f"transformer_lm_{method}", f"transformer_lm_{method}")
    # fairseq registers a model's own name as an architecture that completes nothing.
    BASE_SIZES.name("transformer_lm_peft", "transformer_lm_peft")
    own_name = _architecture("transformer_lm_peft", "transformer_lm", None)
    ARCH_CONFIG_REGISTRY["transformer_lm_peft"] = own_name
    for name, (size, peft) in names.items():
        if name not in ARCH_MODEL_REGISTRY:
            complete = _architecture(name, size, peft)
            register_model_architecture("transformer_lm_peft", name)(complete)


_register_architectures()
