"""fairseq's encoder-decoders with any method injected: transformer, BART, mBART, and whatever else
is one of these by its architecture (M2M-100, NLLB, BARThez, IndicTrans2).

``--arch transformer_<method>``, ``bart_<method>`` and ``mbart_<method>`` have the sizes of their
base, and from scratch those of fairseq's ``transformer``, ``bart_large`` and ``mbart_large``; every
size that fairseq has a name for goes by it: ``transformer_iwslt_de_en_lora``,
``bart_base_prefix``; with ``_peft`` in place of a method, ``--peft`` says which. They train with
fairseq's own tasks and criterions:

    fairseq-train data --user-dir fairseq_peft --task translation \\
        --criterion label_smoothed_cross_entropy \\
        --arch transformer_lora --finetune-from-model base.pt ...
"""

from __future__ import annotations

import argparse
import typing
from dataclasses import fields

from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.bart import BARTModel
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from fairseq_peft import methods
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Family
from fairseq_peft.models import end_heads, sizes
from fairseq_peft.models.encoder_decoder import STACKS, SourceEncoder, TargetDecoder
from fairseq_peft.models.options import (
    COMMON,
    METHOD_FIELDS,
    TEXT,
    config_class,
    decide_precision,
    fill,
    namespace,
)
from fairseq_peft.models.peft_model import PeftModel
from fairseq_peft.models.sizes import Size

FAMILY = Family("", STACKS, updates_in_one=True)

# ---- Flags ---------------------------------------------------------------------------------------


def _stock_flags():
    """flag -> (type, default, help) of ``TransformerConfig``, flat as on the command line."""
    found = {}
    for part in fields(TransformerConfig):
        nested = isinstance(part.type, type) and issubclass(part.type, FairseqDataclass)
        for one in fields(part.type) if nested else (part,):
            kind = (typing.get_args(one.type) or (one.type,))[0]  # Optional[int] -> int
            computed = isinstance(one.default, str) and one.default.startswith("${")
            found[f"{part.name}_{one.name}" if nested else one.name] = (
                kind if kind in (bool, int, float) else str,
                None if computed else one.default,
                one.metadata.get("help", ""),
            )
    del found["_name"]
    return {name: found[name] for name in found if not name.endswith("__name")}


#: The same table as in ``options.py``: fairseq's flags, and those of every family.
FLAGS = {
    **_stock_flags(),
    **{
        f"{half}_positions": (int, None, f"rows of the {half}'s learned positions ({flag})")
        for half, flag in (
            ("encoder", "--max-source-positions"),
            ("decoder", "--max-target-positions"),
        )
    },
    **TEXT,
    **COMMON,
}

#: The same for BART, which can classify.
BART_FLAGS = {**FLAGS, **end_heads.FLAGS}

TransformerPeftConfig = config_class("TransformerPeftConfig", FLAGS)
BARTPeftConfig = config_class("BARTPeftConfig", BART_FLAGS)

_NO_TABLE = "the words then have no single table, which methods and the output share"
_NOT_COMPUTED = "the layers of this model do not compute it"
_OTHER_LAYERS = "the numbers of the layers would not be the base's"
#: Flags of fairseq's transformer that this one does not know -> why.
REFUSED = {
    **dict.fromkeys(("adaptive_input", "adaptive_softmax_cutoff", "char_inputs"), _NO_TABLE),
    "merge_src_tgt_embed": "the dictionaries would not be those of the data",
    **dict.fromkeys(("encoder_layers_to_keep", "decoder_layers_to_keep"), _OTHER_LAYERS),
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop", "base_layers"), _NOT_COMPUTED),
    **dict.fromkeys(("quant_noise_pq", "quant_noise_scalar"), _NOT_COMPUTED),
    **dict.fromkeys(("no_cross_attention", "cross_self_attention"), _NOT_COMPUTED),
    **dict.fromkeys(("encoder_xformers_att_config",), _NOT_COMPUTED),
    **dict.fromkeys(("decoder_xformers_att_config", "offload_activations"), _NOT_COMPUTED),
}

# ---- Sizes of the base ---------------------------------------------------------------------------

_SOURCE_WORDS = "encoder.embed_tokens.weight"
_TARGET_WORDS = "decoder.embed_tokens.weight"
_OUTPUT = "decoder.output_projection.weight"


def _shares_all(tensors):
    """False where the source's words are not the target's; equal tables may be one or two."""
    untied = sizes.is_untied(_SOURCE_WORDS, _TARGET_WORDS)(tensors)
    return False if untied else None


def _shares_output(tensors):
    """False where the output has a matrix of its own."""
    return False if sizes.is_untied(_OUTPUT, _TARGET_WORDS)(tensors) else None


def _sizes_of_a_half(half: str) -> list[Size]:
    words, positions = f"{half}.embed_tokens.weight", f"{half}.embed_positions.weight"
    return [
        Size(f"{half}_layers", sizes.num_layers(f"{half}.layers.")),
        Size(f"{half}_embed_dim", sizes.num_columns(words)),
        Size(f"{half}_ffn_embed_dim", sizes.num_rows(f"{half}.layers.0.fc1.weight")),
        Size(f"{half}_attention_heads", divides=f"{half}_embed_dim"),
        Size(f"{half}_learned_pos", sizes.is_there(positions)),
        # Without a last norm, a decoder may have its norms before or behind: args tell.
        Size(f"{half}_normalize_before", sizes.if_there(f"{half}.layer_norm.weight", True), False),
    ]


#: What the base of an encoder-decoder decides.
BASE_SIZES = sizes.BaseSizes(
    *_sizes_of_a_half("encoder"),
    *_sizes_of_a_half("decoder"),
    Size("decoder_input_dim", sizes.num_columns(_TARGET_WORDS)),
    Size("decoder_output_dim", sizes.num_columns(_TARGET_WORDS)),
    # Not max_source_positions: that flag is the task's, too, which leaves longer texts out by it.
    Size("encoder_positions", sizes.num_rows("encoder.embed_positions.weight", 2), asked=False),
    Size("decoder_positions", sizes.num_rows("decoder.embed_positions.weight", 2), asked=False),
    Size("layernorm_embedding", sizes.is_there("encoder.layernorm_embedding.weight")),
    Size("share_all_embeddings", _shares_all, default=True),
    Size("share_decoder_input_output_embed", _shares_output, default=True),
    # What no tensor shows is as the name of the architecture has it, where args are silent.
    *(
        Size(flag, asked=False)
        for flag in ("activation_fn", "no_scale_embedding", "no_token_positional_embeddings")
    ),
    Size("no_decoder_final_norm", sizes.if_there("decoder.layer_norm.weight", False), False),
    words=_TARGET_WORDS,
    names=dict,
    kind="encoder-decoder",
    only={
        **dict.fromkeys(("no_cross_attention", "cross_self_attention", "adaptive_input"), False),
        **{"adaptive_softmax_cutoff": None, "quant_noise_pq": 0},
    },
)

#: Flags that follow from others, which a flag may change.
_WIDTHS = ("decoder_input_dim", "decoder_output_dim")
_FOLLOW = ("decoder_embed_dim", "decoder_ffn_embed_dim", *_WIDTHS)

# ---- Models --------------------------------------------------------------------------------------


class EncoderDecoder(PeftModel):
    """Mixin in front of fairseq's TransformerModel and BARTModel; ``flags`` is the dataclass of the
    model's flags, ``table`` the table that it is made of."""

    family = FAMILY
    base_sizes = BASE_SIZES
    untold = (
        "which fairseq's tasks do not tell it: here it would train as something else. Choose "
        "another method."
    )

    @classmethod
    def add_args(cls, parser):
        gen_parser_from_dataclass(parser, cls.flags(), delete_default=True)

    @classmethod
    def build_model(cls, cfg, task):
        """Build the plain model, then inject the methods.

        Raises:
            InputError: the flags mean a model, or a method, that is not for this family.
        """
        args = namespace(cfg, defaults(cls.table))
        # Under the model's own name, as hydra gives it, no architecture has completed the flags.
        fill(args, dict.fromkeys(_WIDTHS, args.decoder_embed_dim))
        for half, side in (("encoder", "source"), ("decoder", "target")):
            rows = getattr(args, f"{half}_positions") or getattr(args, f"max_{side}_positions")
            setattr(args, f"max_{side}_positions", rows)
        check(args, task)
        decide_precision(args)
        model = super().build_model(args, task)
        model.args = args
        # fairseq's BART asks for it, to know whether a base may have fewer languages.
        model.args.task = getattr(getattr(task, "cfg", None), "_name", None)
        model.set_up(args, task)
        classifies = hasattr(task, "build_classifier") or not isinstance(task, FairseqTask)
        has_heads = classifies and hasattr(cls, "register_classification_head")
        if model.setting.name == "head_only" and not has_heads:
            raise InputError(
                "--peft head_only trains a classification head alone, and an encoder-decoder has "
                "none: nothing would train. Choose another method."
            )
        return model

    @classmethod
    def build_encoder(cls, args, src_dict, embed_tokens):
        return SourceEncoder(args, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return TargetDecoder(args, tgt_dict, embed_tokens)

    @property
    def dictionary(self):
        """The words of the source."""
        return self.encoder.dictionary

    @property
    def target_dictionary(self):
        """The words of the target."""
        return self.decoder.dictionary

    @property
    def longest_text(self) -> int:
        """The tokens that there is room for in source and target, beside what methods take."""
        return min(self.max_positions())

    @property
    def num_reserved(self) -> int:
        """Positions that the methods take from the source."""
        return self.encoder.num_reserved

    def upgrade_state_dict_named(self, state_dict, name):
        """As ``PeftModel.upgrade_state_dict_named``, and for what other versions of fairseq, or
        other writers, leave out or add: buffers without content, sinusoids."""
        prefix = name + "." if name else ""
        for half, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            has_norm = f"{prefix}{half}.layer_norm.weight" in state_dict
            if has_norm == (module.layer_norm is not None):
                # Else fairseq takes the file for one from before there was a last norm.
                state_dict.setdefault(f"{prefix}{half}.version", module.version.clone())
            for kind in ("_float_tensor", "weights"):
                state_dict.pop(f"{prefix}{half}.embed_positions.{kind}", None)
        super().upgrade_state_dict_named(state_dict, name)


@register_model("transformer_peft", dataclass=TransformerPeftConfig)
class TransformerPeftModel(EncoderDecoder, TransformerModel):
    """fairseq's transformer with methods of ``fairseq_peft.methods`` injected."""

    flags, table = TransformerPeftConfig, FLAGS
    classification_heads = {}  # BART has some; what writes checkpoints asks for them


@register_model("bart_peft", dataclass=BARTPeftConfig)
class BARTPeftModel(end_heads.EndHeads, EncoderDecoder, BARTModel):
    """fairseq's BART or mBART with methods of ``fairseq_peft.methods`` injected."""

    flags, table = BARTPeftConfig, BART_FLAGS


def check(args, task) -> None:
    """Raise InputError where ``args`` mean a model that this file does not build."""
    for name, reason in REFUSED.items():
        if getattr(args, name, None):
            raise InputError(
                f"--{name.replace('_', '-')} is not for --arch {getattr(args, '_name', None)}: "
                f"{reason}. Leave it out, or choose another architecture."
            )
    c = args.encoder_embed_dim
    for name in ("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"):
        if getattr(args, name) != c:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(args, name)} is not --encoder-embed-dim {c}: "
                "a map between them is not for this model. Give the same for all."
            )
    for half in ("encoder", "decoder"):
        heads = getattr(args, f"{half}_attention_heads")
        if c % heads:
            raise InputError(
                f"--{half}-embed-dim {c} does not divide into --{half}-attention-heads {heads} "
                "heads: give a multiple."
            )
    known = utils.get_available_activation_fns()
    if args.activation_fn not in known:
        raise InputError(
            f"--activation-fn {args.activation_fn!r} is unknown: give one of {', '.join(known)}."
        )
    if args.share_all_embeddings and task.source_dictionary != task.target_dictionary:
        raise InputError(
            "--share-all-embeddings needs one dictionary for source and target, and the data has "
            "two. Prepare it with fairseq-preprocess --joined-dictionary, or with the base's own "
            "dictionary for both (--srcdict, --tgtdict)."
        )


# ---- Architectures -------------------------------------------------------------------------------


def defaults(table: dict) -> dict:
    """Flag -> what holds where nobody says otherwise."""
    return {name: default for name, (_, default, _) in table.items()}


def architecture(name: str, stock: str, peft: str, table: dict):
    """The function that fairseq calls to complete the flags of ``--arch name``.

    Args:
        table: the model's flags.
        stock: what fairseq calls the size.
        peft: the method.
    """

    def complete(args):
        sizes.from_start(args, BASE_SIZES, name)
        fill(args, {"peft": peft})
        given = vars(args) if isinstance(args, argparse.Namespace) else OmegaConf.to_container(args)
        # fairseq's own functions take None for a value.
        found = argparse.Namespace(**{n: given[n] for n in given if given[n] is not None})
        ARCH_CONFIG_REGISTRY[stock](found)
        fill(args, {n: value for n, value in vars(found).items() if n in table})
        fill(args, defaults(table))  # fairseq's trainer reads some, as numbers
        fill(args, dict.fromkeys(METHOD_FIELDS))

    return complete


def _named_sizes(stock: str) -> dict | None:
    """The numbers that fairseq's name ``stock`` stands for, which a base has to have; None where it
    is not for this model. Switches are the base's: a recipe gives some by flags."""
    if not ARCH_CONFIG_REGISTRY[stock].__module__.startswith("fairseq.models."):
        return None  # of another plugin: its name may begin, and its function ask, as it likes
    args = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[stock](args)
    if any(getattr(args, flag, None) for flag in REFUSED):
        return None
    told = {size.flag for size in BASE_SIZES.sizes} - set(_FOLLOW)
    return {flag: n for flag, n in vars(args).items() if flag in told and type(n) is int}


#: Model -> {what the sizes of any base go by: fairseq's sizes from scratch}.
ANY_SIZE = {
    "transformer": {"transformer": "transformer"},
    "bart": {"bart": "bart_large", "mbart": "mbart_large"},
}


TABLES = {"transformer": FLAGS, "bart": BART_FLAGS}


def _register_architectures():
    for model, any_size in ANY_SIZE.items():
        ways = [*methods.available(), "peft"]
        names = {
            f"{start}_{way}": (stock, way, None)
            for start, stock in any_size.items()
            for way in ways
        }
        for stock in ARCH_MODEL_INV_REGISTRY[model]:
            own = _named_sizes(stock) if stock not in any_size else None
            if own is not None:
                names.update({f"{stock}_{way}": (stock, way, own) for way in ways})
        for name, (stock, way, own) in names.items():
            start = next(start for start in any_size if name.startswith(start))
            BASE_SIZES.name(name, f"{start}_{way}", own)
            complete = architecture(name, stock, "full" if way == "peft" else way, TABLES[model])
            if name == f"{model}_peft":
                # fairseq registers a model's own name as an architecture that completes nothing.
                ARCH_CONFIG_REGISTRY[name] = complete
            elif name not in ARCH_MODEL_REGISTRY:
                register_model_architecture(f"{model}_peft", name)(complete)


_register_architectures()
