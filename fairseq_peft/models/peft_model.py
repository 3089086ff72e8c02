"""What a fairseq model with methods in it can do, whatever its family."""

from __future__ import annotations

import torch
from fairseq.tasks import FairseqTask

from fairseq_peft import compiling, methods
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.errors import InputError
from fairseq_peft.injection import frozen, maps, surgery
from fairseq_peft.injection.family import Family
from fairseq_peft.keys import DUPLICATES, account
from fairseq_peft.models.options import METHOD_FIELDS, check_dropouts
from fairseq_peft.models.sizes import BaseSizes
from fairseq_peft.optim.layer_decay import decay_learning_rates
from fairseq_peft.seeds import stream_seed


class PeftModel:
    """Mixin in front of a fairseq model, whose ``build_model`` ends with ``set_up``.

    A family whose methods take positions of the text has ``num_reserved``, how many they are, and
    ``longest_text``, the tokens that there is room for beside them.

    Attributes:
        family: where the model keeps what methods change.
        base_sizes: which flags its base decides, and where they are to be read (``sizes.py``).
        args: the flags, as a namespace.
        setting: the methods and their knobs.
        added: names of the parameters and buffers that they added.
        accepts_base: whether a checkpoint may lack what the method adds, and the head. True for
            training from a base, False for a model that is rebuilt from its own checkpoint.
        encode_text: text -> token ids, where the task can read text; else None.
        compiles: whether its layers are called through a ``compiling.Caller``.
        untold: what to say of a method that follows the run where the task does not tell it.
    """

    family: Family
    base_sizes: BaseSizes | None = None
    setting = methods.setting("full", {})
    added = frozenset()
    num_reserved = 0
    dropout_line = ""  # what --frozen-dropout comes to, for the log of a run
    accepts_base = True
    encode_text = None
    compiles = True
    untold = (
        "which only --task sentence_classification tells it: here it would train as something "
        "else. Give that task, or another method."
    )

    def set_up(self, args, task) -> None:
        """Inject the methods that the flags ``args`` name; seeds come from the task.

        Raises:
            InputError: a flag says what cannot be, or the task does not tell a method what it must
                hear.
        """
        self.check_compile(args)
        check_dropouts(vars(args))
        encode = getattr(task, "encode_text", None)
        if encode is not None:
            # A function, not the task's method: a copy of the model would copy the task as well.
            self.encode_text = lambda text: encode(text)
        given = {flag: getattr(args, flag, None) for flag in METHOD_FIELDS}
        told = task.cfg if getattr(task, "cfg", None) is not None else getattr(task, "args", None)
        # A task that knows no seed is fairseq's: its trainer has seeded torch with --seed.
        self.inject(args.peft, given, getattr(told, "seed", torch.initial_seed()))
        self.check_room()
        for parameter in self.parameters() if getattr(args, "precision", None) == "fp16" else ():
            parameter.scales_loss = True  # see optim/peft_adamw.py
        # A checkpoint from before this flag has no say.
        decay = getattr(args, "layer_lr_decay", None)
        decay_learning_rates(self, self.family, 1.0 if decay is None else decay)
        tells = hasattr(task, "planned_updates") or not isinstance(task, FairseqTask)
        if self.setting.follows_updates and not tells:
            raise InputError(
                f"--peft {self.setting.name} follows the run update by update, {self.untold}"
            )

    def check_room(self) -> None:
        """Raise InputError where the methods leave no position for the text."""
        if self.num_reserved and self.longest_text < 1:
            raise InputError(
                f"{self.num_reserved} prompt or prefix tokens leave none of "
                f"{self.longest_text + self.num_reserved} positions for the text. Give fewer with "
                "--prompt-num-tokens or --prefix-num-tokens."
            )

    def check_compile(self, args) -> None:
        """Raise InputError unless this model can do what ``--compile`` says."""
        name = compiling.of(args)
        compiling.check(name)
        if name != "off" and not self.compiles:
            raise InputError(
                f"--compile {name} is not for this model: its layers are another library's. Leave "
                "it out."
            )
        if name == "graphs" and getattr(args, "checkpoint_activations", False):
            raise InputError(
                "--compile graphs and --checkpoint-activations do not go together: a recorded pass "
                "cannot be computed again in the middle of the backward pass. Give --compile on, "
                "or leave one out."
            )

    def inject(self, peft: str, given: dict, seed: int) -> None:
        """Put the methods that ``peft`` names into the model and freeze what they do not train."""

        def generator(name):
            return torch.Generator().manual_seed(stream_seed(seed, "method", name))

        maps.unpack(self, self.family)
        before = set(super().state_dict())
        self.setting = methods.setting(peft, given)
        self.setting.inject(self, self.family, generator)
        self.added = frozenset(super().state_dict()) - before
        self.freeze()
        # A checkpoint from before this flag has no say.
        choice = getattr(self.args, "frozen_dropout", None) or "on"
        self.dropout_line = frozen.set_dropout(self, self.family, self.added, choice)

    def freeze(self) -> None:
        """Let exactly that train which ``trains`` says."""
        chosen = self.setting.trainable_base_names(self, self.family)
        surgery.freeze(self, lambda name: self.trains(name, chosen))

    def trains(self, name: str, chosen: set[str]) -> bool:
        """Whether a parameter trains: what the methods added, or chose of the base."""
        return name in self.added or name in chosen

    def set_num_updates(self, num_updates):
        """Nothing. fairseq's own walks through all modules for each that has modules, at every
        step; only its models of speech want to know the number."""

    def penalty(self):
        """What the methods add to the mean loss of a training batch: a scalar, or None."""
        return self.setting.penalty(self)

    def after_update(self, num_updates: int, planned: int) -> None:
        """Tell the methods that the optimizer has stepped; gradients are still in place."""
        self.setting.after_update(self, num_updates, planned)

    def adopt_base(self) -> None:
        """Finish what depends on the base weights, when a run starts from scratch."""
        self.setting.adopt_base(self, self.family)

    def check_base(self, state_dict=None) -> None:
        """Raise InputError unless the methods can start from ``state_dict``; None: from scratch."""
        if self.accepts_base and not any(key in (state_dict or ()) for key in self.added):
            self.setting.check_base(self, state_dict)

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
        trains, and what the start of the run changed."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return trained | self.added | self.setting.corrected_base_names(self, self.family)

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
        self.setting.merge(self, self.family)

    def upgrade_state_dict_named(self, state_dict, name):
        """Bring a base checkpoint to this model's keys: it gets what the methods add, as it stands
        at the start, unless it has some of it."""
        prefix = name + "." if name else ""
        for key in [key for key in state_dict if DUPLICATES.search(key)]:
            del state_dict[key]
        if self.accepts_base and not any(prefix + key in state_dict for key in self.added):
            own = super().state_dict()
            state_dict.update({prefix + key: own[key] for key in self.added})
        super().upgrade_state_dict_named(state_dict, name)

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
