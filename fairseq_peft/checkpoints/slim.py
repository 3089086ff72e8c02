"""Training checkpoints that hold only what trains: written without the base, read back with it.

A slim checkpoint is fairseq's own, less the tensors of ``model`` that are the base's, bit for bit.
Its entry ``base`` tells where they come from:

    path, relative      the base's file: absolute, and from the checkpoint's folder
    sha256              fingerprint of the base (``adapters.base.fingerprint``)
    names               the tensors that were left out
    names_sha256        of those tensors, as the base has them

What is left out is decided tensor by tensor at each save, by comparison: a frozen weight that a
method corrected, or that anything else has changed, is in the file. Reading fills in ``names``,
verified, and nothing else; from there on the state is as if it had been written whole.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from fairseq_peft.adapters.base import fingerprint, renamed
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.digests import combine, digest
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery

logger = logging.getLogger(__name__)

ENTRY = "base"
FIELDS = {"path": str, "relative": str, "sha256": str, "names": list, "names_sha256": str}


def read(path: str, base: str | None = None, trust: bool = False) -> dict:
    """A fairseq checkpoint, through torch's safe loader; a slim one is filled from its base.

    Args:
        base: where to look for the base before anywhere else.
        trust: as ``checkpoint_file.read`` takes it.

    Raises:
        InputError: it is cut short, no checkpoint, or would need to run code; or its base is not
            found.
    """
    state = checkpoint_file.read(path, trust)
    fill(state, path, base)
    return state


# ---- Writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The base of a run, as its checkpoints refer to it.

    Attributes:
        path: of its file, absolute.
        sha256: its fingerprint.
        digests: name of a tensor that may be left out -> its digest in the base's file, and in a
            model that loaded it; the two differ where the file has another precision.
    """

    path: str
    sha256: str
    digests: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, model, state: dict, path: str) -> Base:
        """The base of a run of ``model`` that starts from the checkpoint ``state`` of ``path``.

        Where ``state`` is slim itself, its own base is the one: ``path`` is a checkpoint that
        training may overwrite.
        """
        entry = state.get(ENTRY) or {"path": os.path.abspath(path)}
        tensors = renamed(state["model"])
        names = set(tensors).intersection(entry.get("names", tensors))
        own = model.state_dict()
        digests = {}
        for name in frozen_names(model):
            if name in names:
                found = digest(name, tensors[name])
                cast = tensors[name].to(own[name].dtype)
                same = cast.dtype == tensors[name].dtype
                digests[name] = (found, found if same else digest(name, cast))
        sha256 = entry.get("sha256") or fingerprint(state["model"])
        return cls(entry["path"], sha256, digests)

    def leave_out(self, state: dict, folder: str) -> dict:
        """The checkpoint ``state``, about to be written to ``folder``, without what is the base's.

        ``state`` stays as it is.
        """
        weights = dict(state["model"])
        names = [
            name
            for name, (_, loaded) in self.digests.items()
            if name in weights and digest(name, weights[name]) == loaded
        ]
        for name in names:
            del weights[name]
        entry = {
            "path": self.path,
            "relative": os.path.relpath(self.path, folder),
            "sha256": self.sha256,
            "names": names,
            "names_sha256": combine({name: self.digests[name][0] for name in names}),
        }
        return {**state, "model": weights, ENTRY: entry}


def base_of_run(model, family, state: dict, start, save_dir: str) -> Base | None:
    """What the checkpoints of a run refer to; None where they hold the whole model.

    That is where all of the body trains, where the run goes on from a whole checkpoint, and where
    the base lies among the checkpoints that the run writes, which may take its place.

    Args:
        state: the checkpoint that training starts from; ``start`` says which that is
            (``data.checks.Start``).
    """
    if all(parameter.requires_grad for parameter in surgery.tensors(model, family).values()):
        return None
    beside = os.path.realpath(os.path.dirname(start.path)) == os.path.realpath(save_dir)
    if beside and ENTRY not in state:
        logger.info(f"checkpoints hold the whole model, as {start.path} in the same folder does")
        return None
    base = Base.of(model, state, start.path)
    logger.info(
        f"checkpoints hold what trains, and refer to {base.path} (sha256 {base.sha256[:12]}) for "
        f"the {len(base.digests)} tensors that do not"
    )
    return base


def frozen_names(model) -> list[str]:
    """The tensors of a model that neither train nor come from a method; each name of a tied one."""
    training = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    return [name for name in model.state_dict() if name not in training | model.added]


# ---- Reading -------------------------------------------------------------------------------------

#: Fingerprint -> where this process found that base last: fairseq reads a checkpoint once more, and
#: does not know where the first reader was told to look.
_found: dict[str, str] = {}


def fill(state: dict, path: str, base: str | None = None) -> None:
    """Put what a slim checkpoint leaves out back into ``state``; a whole one stays as it is.

    Args:
        path: the checkpoint's file.
        base: where to look for the base before anywhere else.

    Raises:
        InputError: the base is not found, or is another one.
    """
    if ENTRY not in state:
        return
    entry = _entry(state)
    if entry is None:
        raise InputError(
            f"{path} refers to its base by something else than {', '.join(FIELDS)}: it is damaged, "
            "or of another version of this plugin. Give another checkpoint."
        )
    missing = [name for name in entry["names"] if name not in state["model"]]
    if not missing:
        return
    place, tensors = _find(entry, path, base)
    state["model"].update({name: tensors[name] for name in missing})
    state[ENTRY] = {**entry, "path": place}


def _entry(state) -> Mapping | None:
    """The entry of a slim checkpoint; None where there is none, or none to be relied on."""
    entry = state.get(ENTRY)
    sound = isinstance(entry, Mapping) and all(
        isinstance(entry.get(field), kind) for field, kind in FIELDS.items()
    )
    return entry if sound and all(isinstance(name, str) for name in entry["names"]) else None


def _find(entry, path, base):
    """Where the base of ``entry`` is, and its tensors.

    A base that is named has to be the right one; elsewhere a wrong file is passed over while there
    are other places.
    """
    folder = os.path.dirname(os.path.abspath(path))
    places = [
        base,
        _found.get(entry["sha256"]),
        entry["path"],
        os.path.normpath(os.path.join(folder, entry["relative"])),
        os.path.join(folder, os.path.basename(entry["path"])),
    ]
    places = list(dict.fromkeys(os.path.abspath(place) for place in places if place))
    wrong = []
    for place in places:
        if not os.path.isfile(place) or os.path.realpath(place) == os.path.realpath(path):
            continue
        state = checkpoint_file.read(place)
        other = _entry(state)
        if other is not None and other["sha256"] == entry["sha256"]:
            continue  # a slim checkpoint on the same base
        reason = _difference(entry, state["model"])
        if reason is None:
            _found[entry["sha256"]] = place
            return place, renamed(state["model"])
        wrong.append(f"{place} {reason}")
        if base and place == os.path.abspath(base):
            break
    seen = "; ".join(wrong) or f"there is no file {' or '.join(places)}"
    raise InputError(
        f"{path} holds only what was trained on the base {entry['path']} (sha256 "
        f"{entry['sha256'][:12]}), but {seen}. Put that base back, or beside the checkpoint, or "
        "name it: fairseq-train --finetune-from-model FILE, fairseq-peft merge --base FILE, "
        "fairseq-validate --model-overrides \"{'finetune_from_model': 'FILE'}\"."
    )


def _difference(entry, weights):
    """What tells a base checkpoint's weights from those that ``entry`` refers to, or None."""
    found = fingerprint(weights)
    if found != entry["sha256"]:
        return f"is another one (sha256 {found[:12]})"
    tensors = renamed(weights)
    lacking = [name for name in entry["names"] if name not in tensors]
    if lacking:
        return f"has no {lacking[0]}"
    digests = {name: digest(name, tensors[name]) for name in entry["names"]}
    return None if combine(digests) == entry["names_sha256"] else "has another LM head"
