"""The methods, found by looking: each file of this folder but ``base`` holds one; and settings,
what ``--peft`` and its flags say: one method or several, each with its config."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError

#: Files that hold no method to choose; token_rows' is put beside any by its flag.
_NOT_CHOSEN = ("base", "token_rows")


def available() -> list[str]:
    """Names of all methods, without importing them."""
    return sorted(
        info.name
        for info in pkgutil.iter_modules(__path__)
        if info.name not in _NOT_CHOSEN and not info.ispkg
    )


def get(name: str):
    """The class of the method called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in available():
        raise InputError(f"--peft {name!r} is unknown. Methods here: {', '.join(available())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    return module.METHOD


def names_in(peft: str) -> list[str]:
    """``"lora,prefix"`` or ``"lora+prefix"`` as lora and prefix, as they were typed."""
    return [name.strip() for name in peft.replace("+", ",").split(",")]


def split(peft: str) -> list:
    """The classes of ``"lora,prefix"`` or ``"lora+prefix"``, in the order of their stages.

    Raises:
        InputError: one is unknown or named twice, or they do not go together.
    """
    names = names_in(peft)
    found = [get(name) for name in names]
    if len(set(names)) < len(names):
        raise InputError(f"--peft {peft!r} names a method twice. Name each once.")
    for method in found:
        if method.alone and len(found) > 1:
            raise InputError(
                f"--peft {peft!r}: {method.name} cannot be combined, because {method.alone}. "
                "Leave it or the others out."
            )
        for name in names:
            if name in method.excludes:
                raise InputError(
                    f"--peft {peft!r}: {method.name} and {name} do not go together: "
                    f"{method.excludes[name]}. Leave one out."
                )
    return sorted(found, key=lambda method: (method.stage, method.name))


def usual_rates(peft: str) -> list[str]:
    """Learning rates to start from, lowest first, as people type them; of several methods those of
    the one that takes the lowest.

    Raises:
        InputError: as ``split``.
    """
    return list(map(rate_text, min(method.learning_rates for method in split(peft))))


def rate_text(value: float) -> str:
    """A learning rate as people type it: 0.0005 as ``5e-4``."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


class Setting:
    """The methods of one ``--peft``, each with its config: what the model holds and asks.

    Attributes:
        methods: ``methods.base.Method`` objects, in the order in which they are injected.
    """

    def __init__(self, chosen: Iterable):
        self.methods = tuple(chosen)

    def __iter__(self):
        return iter(self.methods)

    def __len__(self) -> int:
        return len(self.methods)

    @property
    def name(self) -> str:
        """``lora``, or ``lora+prefix`` for several."""
        return "+".join(method.name for method in self)

    @property
    def mergeable(self) -> bool:
        return all(method.mergeable for method in self)

    @property
    def logits_at_start(self) -> str:
        """The weakest word of its methods (``methods.base.Method``)."""
        words = [method.logits_at_start for method in self]
        return next(word for word in ("changed", "nearly", "equal") if word in words)

    @property
    def follows_updates(self) -> bool:
        """Whether a method must hear of each update, or has a part in the loss."""
        from fairseq_peft.methods.base import Method

        return any(
            type(method).after_update is not Method.after_update
            or type(method).penalty is not Method.penalty
            for method in self
        )

    def knobs(self) -> dict:
        """What is set: the config's fields, or, for several methods, those of each by its name."""
        knobs = {method.name: asdict(method.config) for method in self}
        return knobs if len(self) > 1 else knobs[self.name]

    def flags(self) -> list[str]:
        """The flags of all knobs, as attribute names."""
        from fairseq_peft.methods.base import flag_name

        names = [flag_name(m.name, field) for m in self for field in fields(m.Config)]
        return list(dict.fromkeys(names))

    def inject(self, model, family, generator: Callable) -> None:
        """Inject all; ``generator(name)`` gives each method its own stream."""
        for method in self:
            method.inject(model, family, generator(method.name))

    def adopt_base(self, model, family) -> None:
        for method in self:
            method.adopt_base(model, family)

    def check_base(self, model, base) -> None:
        for method in self:
            method.check_base(model, base)

    def trainable_base_names(self, model, family) -> set[str]:
        """The names of the base tensors that train.

        Raises:
            InputError: one method trains what another takes to be frozen.
        """
        trained = {method.name: method.trainable_base_names(model, family) for method in self}
        for method in self:
            frozen = method.frozen_base_names(model, family)
            for other, names in trained.items():
                both = sorted(frozen & names)
                if both:
                    raise InputError(
                        f"--peft {self.name}: {other} trains {both[0]}, beside which {method.name} "
                        "adds an update of the frozen weight: one of the two is in vain. Give them "
                        "other layers or targets, or leave one out."
                    )
        return set().union(*trained.values())

    def corrected_base_names(self, model, family) -> set[str]:
        """The names of the frozen base tensors that the start of a run changes."""
        return set().union(*(method.corrected_base_names(model, family) for method in self))

    def count(self, dims) -> Count:
        """The parameters that the methods add, as terms."""
        return Count([term for method in self for term in method.count(dims).terms])

    def count_base(self, dims) -> Count:
        """The parameters of the base that train, as terms; those that two methods name count
        once."""
        terms = [term for method in self for term in method.count_base(dims).terms]
        return Count(list(dict.fromkeys(terms))).by_kind()

    def buffer_bytes(self, dims) -> int:
        """The bytes of the buffers that the methods add and a checkpoint holds."""
        return sum(method.buffer_bytes(dims) for method in self)

    def penalty(self, model):
        """The sum of the methods' penalties, None if no one has any."""
        terms = [method.penalty(model) for method in self]
        terms = [term for term in terms if term is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def after_update(self, model, num_updates: int, planned: int) -> None:
        for method in self:
            method.after_update(model, num_updates, planned)

    def fold(self, model) -> Setting:
        """Replace what only training needs by what it computes; the setting that is left."""
        return Setting(method.fold(model) for method in self)

    def changed_flags(self, before: Setting) -> dict:
        """Flag -> value, for the knobs that differ from ``before``, which has the same methods."""
        from fairseq_peft.methods.base import flag_name

        return {
            flag_name(method.name, field): getattr(method.config, field.name)
            for method, old in zip(self, before)
            for field in fields(method.config)
            if getattr(method.config, field.name) != getattr(old.config, field.name)
        }

    def merge(self, model, family) -> None:
        """Fold all into the base weights.

        Raises:
            InputError: one cannot be merged; nothing has changed then.
        """
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        try:
            for parameter in model.parameters():  # several may change one weight: round it once
                parameter.data = parameter.data.float()
            for method in sorted(self, key=lambda method: method.mergeable):
                method.merge(model, family)  # the first to raise has changed nothing
        finally:
            for name, parameter in model.named_parameters():
                parameter.data = parameter.data.to(dtypes[name])


def setting(peft: str, given: dict) -> Setting:
    """The setting that ``--peft`` and the flags say.

    Args:
        peft: a method, or several with commas; ``Setting.name``, too.
        given: flag (attribute name, ``lora_rank``) -> value, for the flags that were set (None: not
            set).

    Raises:
        InputError: a value is out of range, methods do not go together, or a flag belongs to
            another method and would be ignored.
    """
    from fairseq_peft.methods.base import flag_name
    from fairseq_peft.methods.token_rows import FLAG, TrainTokens

    found = split(peft.removesuffix(f"+{TrainTokens.name}"))
    if given.get(FLAG):
        found.append(TrainTokens)
    own = _own_flags(found)
    given = {flag: value for flag, value in given.items() if value is not None}
    ignored = sorted(set(given) - own)
    if ignored:
        raise InputError(
            f"{_flags(ignored)} would be ignored: --peft {peft} does not use it. Its flags: "
            f"{_flags(sorted(own)) or 'none'}. Leave the flag out, or choose the method it belongs "
            "to."
        )
    chosen = []
    for method in found:
        names = {flag_name(method.name, field): field.name for field in fields(method.Config)}
        config = {names[flag]: value for flag, value in given.items() if flag in names}
        chosen.append(method(method.Config(**config)))
    return Setting(chosen)


def told(flags: dict) -> Setting | None:
    """The setting that the flags of a checkpoint name; None where they name none of ours."""
    peft = flags.get("peft")
    try:
        found = split(peft if isinstance(peft, str) else "")
    except InputError:
        return None
    from fairseq_peft.methods.token_rows import FLAG

    return setting(peft, {flag: flags.get(flag) for flag in (*_own_flags(found), FLAG)})


def _own_flags(found: list) -> set[str]:
    """The flags of method classes."""
    from fairseq_peft.methods.base import flag_name

    return {flag_name(m.name, field) for m in found for field in fields(m.Config)}


def _flags(names) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
