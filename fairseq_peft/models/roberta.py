"""RoBERTa with any method injected: ``roberta_small``, ``roberta_base``, ``roberta_large``,
each with a suffix a method."""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_MODEL_REGISTRY, register_model, register_model_architecture
from fairseq.models.roberta import RobertaModel
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from fairseq_peft import methods
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.architectures import SIZES
from fairseq_peft.errors import InputError
from fairseq_peft.injection import frozen, surgery
from fairseq_peft.keys import DUPLICATES, account
from fairseq_peft.methods.base import Family
from fairseq_peft.models import heads
from fairseq_peft.models.encoder import PeftRobertaEncoder
from fairseq_peft.models.options import METHOD_FIELDS, RobertaPeftConfig, architecture
from fairseq_peft.seeds import stream_seed

logger = logging.getLogger(__name__)

HEADS = "classification_heads."

FAMILY = Family(
    root="encoder.sentence_encoder",
    linears=(*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "fc1", "fc2"),
    embedding="embed_tokens",
    attention_output="self_attn.out_proj",
    ffn_output="fc2",
)


@register_model("roberta_peft", dataclass=RobertaPeftConfig)
class RobertaPeftModel(RobertaModel):
    """fairseq's RoBERTa with methods of ``fairseq_peft.methods`` injected.

    Attributes:
        setting: the methods and their knobs.
        added: names of the parameters and buffers that they added.
        accepts_base: whether a checkpoint may lack what the method adds, and the head. True for
            training from a base, False for a model that is rebuilt from its own checkpoint.
        encode_text: text -> token ids, where the task can read text; else None.
    """

    def __init__(self, args, encoder):
        super().__init__(args, encoder)
        self.setting = methods.setting("full", {})
        self.added = frozenset()
        self.accepts_base = True
        self.encode_text = None
        self.reads_lm_head = True

    @classmethod
    def add_args(cls, parser):
        gen_parser_from_dataclass(parser, RobertaPeftConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg, task):
        """Build the plain model, then inject the method; seeds come from the task."""
        values = OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else vars(cfg)
        args = argparse.Namespace(**values)
        if args.encoder_embed_dim % args.encoder_attention_heads:
            raise InputError(
                f"--encoder-embed-dim {args.encoder_embed_dim} does not divide into "
                "--encoder-attention-heads "
                f"{args.encoder_attention_heads} heads: give a multiple."
            )
        if args.precision not in ("fp32", "bf16"):
            raise InputError(f"--precision {args.precision!r} is unknown: give fp32 or bf16.")
        model = cls(args, PeftRobertaEncoder(args, task.source_dictionary))
        if args.init_embeddings:
            load_embeddings(model, args.init_embeddings)
        encode = getattr(task, "encode_text", None)
        if encode is not None:
            # A function, not the task's method: a copy of the model would copy the task as well.
            model.encode_text = lambda text: encode(text)
        given = {flag: getattr(args, flag, None) for flag in METHOD_FIELDS}
        model.inject(args.peft, given, getattr(task.cfg, "seed", 1))
        # A checkpoint from before this flag has no say.
        decay = getattr(args, "layer_lr_decay", None)
        surgery.decay_learning_rates(model, FAMILY, 1.0 if decay is None else decay)
        tells = hasattr(task, "planned_updates") or not isinstance(task, FairseqTask)
        if model.setting.follows_updates and not tells:
            raise InputError(
                f"--peft {model.setting.name} follows the run update by update, which only "
                "--task sentence_classification tells it: here it would train as something else. "
                "Give that task, or another method."
            )
        return model

    def inject(self, peft: str, given: dict, seed: int) -> None:
        """Put the methods that ``peft`` names into the model and freeze what they do not train."""

        def generator(name):
            return torch.Generator().manual_seed(stream_seed(seed, "method", name))

        before = set(super().state_dict())
        self.setting = methods.setting(peft, given)
        self.setting.inject(self, FAMILY, generator)
        self.added = frozenset(super().state_dict()) - before
        self.freeze()
        # A checkpoint from before this flag has no say.
        choice = getattr(self.args, "frozen_dropout", None) or "on"
        line = frozen.set_dropout(self, FAMILY, self.added, choice)
        if line:
            logger.info(line)

    def freeze(self) -> None:
        """Exactly the method's tensors and the head train; an LM head that nobody reads does
        not."""

        trained = self.setting.trainable_base_names(self, FAMILY)

        def trains(name):
            if name.startswith("encoder.lm_head.") and not self.reads_lm_head:
                return False
            return name in self.added or name.startswith(HEADS) or name in trained

        surgery.freeze(self, trains)

    def forward(self, src_tokens, features_only=False, classification_head_name=None, **kwargs):
        """fairseq's forward; with a head, the last layer is computed where the head reads it.

        Returns:
            logits (B, classes) with ``classification_head_name``, features (B, T, C) with
            ``features_only``, else LM logits; and fairseq's dictionary of extras.
        """
        if classification_head_name is None:
            return self.encoder(src_tokens, features_only, **kwargs)
        head = self.classification_heads[classification_head_name]
        x, extra = self.encoder(src_tokens, True, first_only=head.pooler == "first", **kwargs)
        return heads.scores(head, x, src_tokens.ne(self.encoder.dictionary.pad())), extra

    @property
    def num_reserved(self) -> int:
        """Positions that the methods take from the text."""
        return self.encoder.sentence_encoder.num_reserved

    def penalty(self):
        """What the methods add to the mean loss of a training batch: a scalar, or None."""
        return self.setting.penalty(self)

    def after_update(self, num_updates: int, planned: int) -> None:
        """Tell the methods that the optimizer has stepped; gradients are still in place."""
        self.setting.after_update(self, num_updates, planned)

    def adopt_base(self) -> None:
        """Finish what depends on the base weights, when a run starts from scratch."""
        self.setting.adopt_base(self, FAMILY)

    def check_base(self, state_dict=None) -> None:
        """Raise InputError unless the methods can start from ``state_dict``; None: from scratch."""
        if self.accepts_base and not any(key in (state_dict or ()) for key in self.added):
            self.setting.check_base(self, state_dict)

    def check_pooler(self, state) -> None:
        """Raise InputError where a head of the checkpoint ``state`` reads something else."""
        heads.check_pooler(self, state)

    def read_adapter(self, folder, base=None):
        """The description and the tensors of an adapter folder, for methods that build on others.

        Raises:
            InputError: it is none, or was not trained on ``base`` (name -> tensor), if given.
        """
        found = adapter_folder.read(folder)
        told = found.description["base"]
        if base is not None and (
            told is None or told["sha256"] != adapter_folder.fingerprint(base)
        ):
            trained = f"on {told['path']}, another base" if told else "from scratch"
            raise InputError(
                f"{folder} was trained {trained}, so it does not fit the one that this run starts "
                "from. Give that base, or adapters that were trained on this one."
            )
        return found.description, found.tensors

    def own_names(self) -> set[str]:
        """Names in the state of what a base checkpoint does not give: what the methods added, what
        trains, what the start of the run changed, and the heads."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        head = {name for name in super().state_dict() if name.startswith(HEADS)}
        corrected = self.setting.corrected_base_names(self, FAMILY)
        return trained | self.added | head | corrected

    def fold(self) -> None:
        """Replace what only training needs by what it computes; the logits stay.

        Setting, names and ``args`` follow, so a checkpoint with them rebuilds the folded model.
        """
        base = set(super().state_dict()) - self.added
        before = self.setting
        self.setting = before.fold(self)
        self.added = frozenset(super().state_dict()) - base
        for flag, value in self.setting.changed_flags(before).items():
            setattr(self.args, flag, value)
        self.freeze()

    def merge(self) -> None:
        """Fold what the methods trained into the base weights, which leaves a plain model.

        Raises:
            InputError: a method cannot be merged; nothing has changed then.
        """
        self.setting.merge(self, FAMILY)

    def register_classification_head(
        self, name, num_classes=None, inner_dim=None, seed=None, **kwargs
    ):
        """Register a head, which trains from now on; with ``seed`` it is the same for every method.

        The LM head is not read by a classifier: from here on it is frozen.

        Raises:
            InputError: the pooler is unknown, or would read a prompt.
        """
        pooler = heads.pooler_of(self.args)
        prompt = self.encoder.sentence_encoder.soft_prompt
        if pooler != "first" and prompt is not None and prompt.start == 0:
            raise InputError(
                f"--pooler {pooler} reads the text, and with --prompt-placement before_bos the "
                "first features are those of the prompt. Give --prompt-placement after_bos, or "
                "--pooler first."
            )
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(stream_seed(seed, "head", name))
            if heads.kind_of(self.args) == "linear":
                head = heads.LinearHead(
                    self.args.encoder_embed_dim, num_classes, self.args.pooler_dropout
                )
                self.classification_heads[name] = head
            else:
                super().register_classification_head(name, num_classes, inner_dim, **kwargs)
        self.classification_heads[name].pooler = pooler
        self.reads_lm_head = False
        self.freeze()

    def upgrade_state_dict_named(self, state_dict, name):
        """Bring a base checkpoint to this model's keys; what is filled in is what a base cannot
        have."""
        prefix = name + "." if name else ""
        for key in [key for key in state_dict if DUPLICATES.search(key)]:
            del state_dict[key]
        own = super().state_dict()
        version = "encoder.sentence_encoder.version"
        state_dict.setdefault(prefix + version, own[version])
        if self.accepts_base and self.args.reset_head:
            names = tuple(f"{prefix}{HEADS}{name}." for name in self.classification_heads)
            for key in [key for key in state_dict if key.startswith(names)]:
                del state_dict[key]
        self._check_heads(state_dict, prefix)
        if self.accepts_base:
            if not any(prefix + key in state_dict for key in self.added):
                state_dict.update({prefix + key: own[key] for key in self.added})
        else:
            missing = [
                key for key in own if key.startswith(HEADS) and prefix + key not in state_dict
            ]
            if missing:
                raise InputError(
                    f"The checkpoint has no {missing[0]}: its classification head is missing, so "
                    "it cannot "
                    "classify. Give a checkpoint that fairseq-train wrote with --task "
                    "sentence_classification."
                )
        # fairseq takes every head for one with a dense layer.
        linear = {key: state_dict.pop(key) for key in heads.linear_keys(state_dict, prefix + HEADS)}
        super().upgrade_state_dict_named(state_dict, name)
        state_dict.update({key: linear[key] for key in linear if key[len(prefix) :] in own})

    def _check_heads(self, state_dict, prefix):
        for head_name, head in self.classification_heads.items():
            heads.check_kind(f"{prefix}{HEADS}{head_name}", head, state_dict)
            found = state_dict.get(f"{prefix}{HEADS}{head_name}.out_proj.weight")
            if found is None or found.shape[0] == head.out_proj.out_features:
                continue
            raise InputError(
                f"The checkpoint's head {head_name!r} has {found.shape[0]} classes, the data has "
                f"{head.out_proj.out_features}. Pass --reset-head to start a fresh head, or give "
                "another checkpoint."
            )

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """fairseq's loader with every key accounted for.

        Raises:
            InputError: keys are missing, left over, or of another shape.
        """
        from_base = not any(key in state_dict for key in self.added)
        self.account(state_dict)
        result = super().load_state_dict(state_dict, strict, model_cfg, args)
        if from_base and self.accepts_base:
            self.adopt_base()
        return result

    def account(self, state_dict) -> None:
        """Raise InputError unless ``state_dict`` would load; change neither it nor the model."""
        upgraded = dict(state_dict)
        self.upgrade_state_dict(upgraded)
        account(upgraded, self.state_dict(), self.setting.flags())


def load_embeddings(model, path: str) -> None:
    """Start from the arrays ``embeddings`` (V, C) and ``lm_bias`` (V) of an .npz file.

    Raises:
        InputError: the file does not hold them, or they are of another size.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in ("embeddings", "lm_bias")}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"--init-embeddings {path} cannot be read ({error}). Make it with fairseq-peft "
            "svd-embeddings."
        ) from error
    encoder = model.encoder
    wanted = {
        "embeddings": encoder.sentence_encoder.embed_tokens.weight,
        "lm_bias": encoder.lm_head.bias,
    }
    with torch.no_grad():
        for name, parameter in wanted.items():
            if found[name].shape != parameter.shape:
                raise InputError(
                    f"--init-embeddings {path}: {name} is {tuple(found[name].shape)}, the model "
                    "needs "
                    f"{tuple(parameter.shape)}. Make it from the same dictionary and with the "
                    "same --dim."
                )
            parameter.copy_(found[name])
    logger.info(f"token embeddings and LM bias from {path}")


def _register_architectures():
    for size in SIZES:
        for method in methods.available():
            names = [f"{size}_{method}"]
            if size == "roberta_small" and method == "full":
                names.append(size)
            for name in names:
                if name not in ARCH_MODEL_REGISTRY:
                    register_model_architecture("roberta_peft", name)(architecture(size, method))


_register_architectures()
