"""fairseq's encoder-decoders as Hugging Face's BART, mBART and M2M-100; NLLB and BARThez are of
these kinds, too.

Tensors have the same names on both sides, but for ``model.`` in front of them, and one table of
words, ``shared``, is there what fairseq keeps under three names. Token ids are fairseq's: ``<s>``,
``<pad>``, ``</s>``, ``<unk>``, the pieces, the languages. Of languages the library says ``en_XX``
where fairseq says ``[en_XX]`` (mBART), and ``eng_Latn`` where it says ``__eng_Latn__`` (NLLB);
M2M-100's ``__en__`` is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from fairseq_peft.checkpoints import extended
from fairseq_peft.checkpoints.file import told
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError
from fairseq_peft.hf import tokenizer
from fairseq_peft.models import transformer


class Kind(NamedTuple):
    """One of the library's models.

    Attributes:
        model_type, model_class: what its config.json says.
        name: what fairseq's and our architectures of any size begin with.
        arch: fairseq's architecture that a converted checkpoint names, with all sizes beside it.
        switches: the flags of fairseq's that make the kind.
        has_bias: whether it has a bias of the logits, which fairseq has not.
        untold: flags that no tensor shows, and their values where args are silent.
    """

    model_type: str
    model_class: str
    name: str
    arch: str
    switches: dict
    has_bias: bool
    untold: dict


def _switches(before: bool, norm: bool, learned: bool) -> dict:
    return {
        "encoder_normalize_before": before,
        "decoder_normalize_before": before,
        "layernorm_embedding": norm,
        "encoder_learned_pos": learned,
        "decoder_learned_pos": learned,
    }


KINDS = (
    Kind(
        "bart", "BartForConditionalGeneration", "bart", "bart_large",
        _switches(before=False, norm=True, learned=True), True,
        {"activation_fn": "gelu", "no_scale_embedding": True},
    ),
    Kind(
        "mbart", "MBartForConditionalGeneration", "mbart", "mbart_large",
        _switches(before=True, norm=True, learned=True), True,
        {"activation_fn": "gelu", "no_scale_embedding": False},
    ),
    Kind(
        "m2m_100", "M2M100ForConditionalGeneration", "transformer", "transformer_wmt_en_de_big",
        _switches(before=True, norm=False, learned=False), False,
        {"activation_fn": "relu", "no_scale_embedding": False},
    ),
)  # fmt: skip
MODEL_TYPES = {kind.model_type: kind for kind in KINDS}
#: Key of config.json -> flag.
SIZES = {
    "d_model": "encoder_embed_dim",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_ffn_dim": "encoder_ffn_embed_dim",
    "decoder_ffn_dim": "decoder_ffn_embed_dim",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_attention_heads": "decoder_attention_heads",
    "max_position_embeddings": "max_source_positions",
    "activation_function": "activation_fn",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
}
#: What they are where config.json is silent: the library's defaults.
_LIBRARY = {
    **{"d_model": 1024, "max_position_embeddings": 1024},
    **{f"{half}_layers": 12 for half in ("encoder", "decoder")},
    **{f"{half}_ffn_dim": 4096 for half in ("encoder", "decoder")},
    **{f"{half}_attention_heads": 16 for half in ("encoder", "decoder")},
    **{"dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0},
}
ACTIVATIONS = ("relu", "gelu", "tanh")
#: Only training does it, and config.json says it, too.
_LAYERDROP = ("encoder_layerdrop", "decoder_layerdrop")

#: fairseq's task of mBART, which names languages in its way, whatever the layout of the model.
MBART_TASK = "translation_from_pretrained_bart"
SHARED = "model.shared.weight"
BIAS = "final_logits_bias"
#: fairseq's names of the one table of words.
WORDS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
OUTPUT = "decoder.output_projection.weight"
#: The same of the library's, which older files hold beside ``shared``.
_COPIES = (
    *("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
    "lm_head.weight",
)
_POSITIONS = tuple(f"{half}.embed_positions.weight" for half in ("encoder", "decoder"))
_NO_CONTENT = re.compile(r"\.(version|embed_positions\.(_float_tensor|weights))$")
_HEADS = "classification_heads."

# ---- fairseq's side ------------------------------------------------------------------------------


def is_one(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether fairseq's weights are an encoder-decoder's."""
    return all(name in weights for name in WORDS)


def flags(path, state: dict, weights: Mapping[str, torch.Tensor]) -> tuple[Kind, dict]:
    """The kind of a checkpoint, and flag -> value, what builds its model.

    Args:
        path: of the checkpoint, for messages.

    Raises:
        InputError: the library has no such model.
    """
    given = told(state)
    found = transformer.BASE_SIZES.read({"model": weights, "args": given}, str(path))
    kind = _kind(path, found, weights)
    for half in ("encoder", "decoder"):
        if found[f"{half}_attention_heads"] is None:
            raise InputError(
                f"{path} does not say how many attention heads it has. Give a checkpoint with its "
                "configuration, as fairseq-train writes it."
            )
    positions = {found[f"{half}_positions"] for half in ("encoder", "decoder")}
    if len(positions) > 1:
        raise InputError(
            f"{path} has learned positions of two lengths, {positions}, and a model of the library "
            "has one (max_position_embeddings). It cannot go there."
        )
    for name in ("share_all_embeddings", "share_decoder_input_output_embed"):
        if not found[name]:
            raise InputError(
                f"{path} was trained without --{name.replace('_', '-')}: its words have several "
                "tables, and the library's model has one. It cannot go there."
            )
    if any(name.startswith(_HEADS) for name in weights):
        raise InputError(
            f"{path} has classification heads, and only models that write text can go there."
        )
    longest = positions.pop() or given.get("max_source_positions") or 1024
    more = ("dropout", "attention_dropout", "activation_dropout", "no_token_positional_embeddings")
    found = {
        "_name": kind.name,
        **found,
        **{name: given[name] for name in more if given.get(name) is not None},
        **{n: kind.untold[n] if found.get(n) is None else found[n] for n in kind.untold},
        "max_source_positions": longest,
        "max_target_positions": longest,
    }
    check(path, found, given)
    return kind, found


def _kind(path, flags, weights):
    for kind in KINDS:
        last = all(f"{half}.layer_norm.weight" in weights for half in ("encoder", "decoder"))
        if last == kind.switches["encoder_normalize_before"] and all(
            bool(flags[name]) == value for name, value in kind.switches.items()
        ):
            return kind
    raise InputError(
        f"{path} is none of the library's encoder-decoders that are known here: BART (norms behind "
        "each block, one on the embeddings, learned positions), mBART (the same with norms before "
        "each block and behind the last), M2M-100 and NLLB (norms as mBART, none on the "
        "embeddings, sinusoids). It cannot go there."
    )


def check(path, flags: dict, given: dict) -> None:
    """Raise InputError where ``flags`` and the checkpoint's other flags ``given`` mean what the
    library's models do not compute."""
    if flags["activation_fn"] not in ACTIVATIONS:
        raise InputError(
            f"{path} has --activation-fn {flags['activation_fn']}, and only "
            f"{', '.join(ACTIVATIONS)} are known to be the same there."
        )
    names = ("no_token_positional_embeddings", *transformer.REFUSED)
    for name in (name for name in names if name not in _LAYERDROP and given.get(name)):
        raise InputError(
            f"{path} was trained with --{name.replace('_', '-')}, which the library's models do "
            "not compute. It cannot go there."
        )


def dictionary(path, file, num_rows: int, state: dict, kind: Kind, languages=()):
    """fairseq's dictionary of a checkpoint with ``num_rows`` rows: the words of ``file``, and what
    the task has added to them: languages and ``<mask>``, as far as they are not among them.

    Args:
        languages: those of the task, in its order; else those that the checkpoint names.

    Raises:
        InputError: they make another number of rows.
    """
    task = told(state, "task")
    named = list(languages) or extended.languages_of(task)
    is_mbart = kind.model_type == "mbart" or task.get("_name", task.get("task")) == MBART_TASK
    style = task.get("lang_tok_style") or ("mbart" if is_mbart else "")
    style = "[{}]" if style == "mbart" else "__{}__"
    mask, own, sizes = [tokenizer.MASK], [style.format(name) for name in named], []
    for more in ([], mask, own, own + mask):
        words = checks.load_dictionary(str(file))
        for word in more:
            words.add_symbol(word)
        if len(words) == num_rows:
            return words
        sizes.append(len(words))
    raise InputError(
        f"{file} gives {sizes[0]} rows, {sizes[1]} with <mask>"
        + (f", {sizes[2]} with {len(named)} languages" if named else "")
        + f", and {path} has {num_rows}. Give its own dictionary (--dict), or name the languages "
        "that its task added (--langs), in their order."
    )


def to_hf(weights: Mapping[str, torch.Tensor], kind: Kind) -> dict[str, torch.Tensor]:
    """The library's tensors, as its own files hold them: of tied ones, one.

    Raises:
        InputError: a tensor has no counterpart.
    """
    found = {}
    for name, tensor in weights.items():
        if name in (WORDS[1], OUTPUT) or _NO_CONTENT.search(name):
            continue
        if _PART.fullmatch(name) is None:
            raise InputError(
                f"{name} has no counterpart in Hugging Face's {kind.model_type}, so the model "
                "cannot be converted. Merge what a method has added first (fairseq-peft merge), or "
                "give the run's adapter folder."
            )
        found[SHARED if name == WORDS[0] else f"model.{name}"] = tensor
    if kind.has_bias:
        found[BIAS] = torch.zeros(1, len(found[SHARED]))
    return found


#: The tensors of fairseq's that have the same name there.
_PART = re.compile(
    r"(encoder|decoder)\.((embed_tokens|embed_positions)\.weight"
    r"|(layernorm_embedding|layer_norm)\.(weight|bias)"
    r"|layers\.\d+\.(((self_attn|encoder_attn)\.[qkv]_proj|(self_attn|encoder_attn)\.out_proj)"
    r"|(self_attn|encoder_attn|final)_layer_norm|fc1|fc2)\.(weight|bias))"
)


def config(flags: dict, kind: Kind, num_rows: int, given: dict, start: int) -> dict:
    """config.json.

    Args:
        given: the checkpoint's own flags, for what only training knows.
        start: the token that the decoder begins with.
    """
    return {
        "model_type": kind.model_type,
        "architectures": [kind.model_class],
        "vocab_size": num_rows,
        **{
            key: _LIBRARY.get(key) if flags.get(flag) is None else flags[flag]
            for key, flag in SIZES.items()
        },
        **{name: given.get(name) or 0.0 for name in _LAYERDROP},
        "scale_embedding": not flags["no_scale_embedding"],
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "decoder_start_token_id": start,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }


class Ends(NamedTuple):
    """What stands around a text.

    Attributes:
        before, after: symbols around a source.
        start: what the decoder begins with.
        first: the first word of an answer; None where there is no such.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    start: str = "</s>"
    first: str | None = None


def ends(state: dict, words) -> Ends:
    """Those of a checkpoint, by its task; as BART was pre-trained where it names none."""
    task = told(state, "task")
    name = task.get("_name") or task.get("task")
    source, target = (task.get(f"{side}_lang") for side in ("source", "target"))
    if name == "translation_from_pretrained_bart" and f"[{source}]" in words:
        found = f"[{target}]"
        return Ends((), ("</s>", f"[{source}]"), found if found in words else "</s>")
    if name == "translation_multi_simple_epoch":
        style = "[{}]" if task.get("lang_tok_style") == "mbart" else "__{}__"
        own = style.format(source if task.get("encoder_langtok") == "src" else target)
        before = (own,) if task.get("encoder_langtok") and own in words else ()
        first = style.format(target) if task.get("decoder_langtok") else None
        return Ends(before, ("</s>",), first=first if first and first in words else None)
    if name in (None, "denoising", "multilingual_denoising"):
        return Ends(("<s>",), ("</s>",))
    return Ends((), ("</s>",))


# ---- Languages -----------------------------------------------------------------------------------

_OURS = re.compile(r"\[([a-z]{2,3}_[A-Z]{2,3})\]|__([a-z]{3}_[A-Z][a-z]{3})__")
_THEIRS = re.compile(r"([a-z]{2}_[A-Z]{2})|([a-z]{3}_[A-Z][a-z]{3})")
_LANGUAGE = re.compile(r"\[\w+\]|__\w+__")


def their_symbol(symbol: str) -> str:
    """``en_XX`` of ``[en_XX]``, ``eng_Latn`` of ``__eng_Latn__``; others stay."""
    found = _OURS.fullmatch(symbol)
    return symbol if found is None else found[1] or found[2]


def our_symbol(symbol: str) -> str:
    """The other way round, for a token that is special there."""
    found = _THEIRS.fullmatch(symbol)
    if found is None:
        return symbol
    return f"[{symbol}]" if found[1] else f"__{symbol}__"


def special_symbols(symbols: Sequence[str]) -> list[str]:
    """Those of fairseq's that are no pieces of text, beside the first four."""
    return [s for s in symbols if s == tokenizer.MASK or _LANGUAGE.fullmatch(s)]


# ---- The library's side --------------------------------------------------------------------------


def flags_of(config: dict) -> tuple[Kind, dict]:
    """The kind and fairseq's flags of a config.json.

    Raises:
        InputError: it has what fairseq's models have not.
    """
    kind = MODEL_TYPES[config["model_type"]]
    activation = config.get("activation_function", kind.untold["activation_fn"])
    wrong = {
        "activation_function": (activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        "tie_word_embeddings": (config.get("tie_word_embeddings", True), "True"),
        "pad_token_id": (config.get("pad_token_id", 1) == 1, "1, from which positions count"),
        "is_decoder": (not config.get("is_decoder"), "False"),
    }
    for name, (fits, expected) in wrong.items():
        if not fits:
            raise InputError(
                f"The config has {name} {config[name]!r}, and fairseq's {kind.name} is the same "
                f"only with {expected}. It cannot come here."
            )
    found = {flag: config.get(key, _LIBRARY.get(key)) for key, flag in SIZES.items()}
    dim, longest = found["encoder_embed_dim"], found["max_source_positions"]
    scales = config.get("scale_embedding", kind.model_type == "m2m_100")
    return kind, {
        "_name": kind.name,
        **found,
        **kind.switches,
        **dict.fromkeys(("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"), dim),
        "max_target_positions": longest,
        "activation_fn": activation,
        "no_scale_embedding": not scales,
        "no_decoder_final_norm": False,
        "share_all_embeddings": True,
        "share_decoder_input_output_embed": True,
    }


def from_hf(state: Mapping[str, torch.Tensor], kind: Kind) -> dict[str, torch.Tensor]:
    """fairseq's weights of the library's.

    Raises:
        InputError: a tensor has no counterpart, or the words are missing or several.
    """
    state = {n if n == BIAS or n.startswith(("model.", "lm_")) else f"model.{n}": t
             for n, t in state.items()}  # fmt: skip
    copies = [state[name] for name in (SHARED, *_COPIES) if name in state]
    if not copies:
        raise InputError(
            f"There is no {SHARED} among the weights. Give the folder of a {kind.model_class}."
        )
    words = copies[0]
    if not all(torch.equal(words, other) for other in copies[1:]):
        raise InputError(
            "The weights have several tables of words that differ, and the config ties them. Save "
            "the model again."
        )
    if BIAS in state and state[BIAS].any():
        raise InputError(
            f"{BIAS} is not zero, and fairseq's models have no bias of the logits. The model "
            "cannot come here."
        )
    found = dict.fromkeys((*WORDS, OUTPUT), words)
    for name, tensor in state.items():
        own = name[len("model.") :]
        if name in (SHARED, BIAS, *_COPIES) or _NO_CONTENT.search(name):
            continue
        if _PART.fullmatch(own) is None:
            raise InputError(
                f"{name} has no counterpart in fairseq's {kind.name}. Give the folder of a "
                f"{kind.model_class}."
            )
        found[own] = tensor
    return found
