"""Training checkpoints that hold only what trains: written without the base, read back with it.

A slim checkpoint is fairseq's own, less the tensors of ``model`` that are the base's, bit for bit.
Its entry ``base`` tells where they come from::

    {
        "path": "/data/roberta_small/model.pt",    the base's file, as the run found it
        "relative": "../../roberta_small/model.pt",         the same, from the checkpoint's folder
        "sha256": "3f2a...",                       of the base (``adapters.base.fingerprint``)
        "names": ["encoder.sentence_encoder.embed_tokens.weight", ...],     what is left out
        "names_sha256": "9c01...",                 of those tensors, as the base's file has them
    }

What is left out is decided tensor by tensor at each save, by comparison: a frozen weight that a
method corrected, or that anything else has changed, is in the file. Reading fills in ``names``,
verified, and nothing else; from there on the state is as if it had been written whole.

In this file:

    entry           what a slim checkpoint says of its base, the dictionary above
    BaseRef         what a run that writes checkpoints knows of its base, to make the entry
    base_path       a file that holds the base, or is said to
    base_weights    the tensors in it, name -> tensor
    left_out        names of tensors that the base has and the checkpoint has not
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from fairseq_peft.adapters.base import fingerprint, renamed
from fairseq_peft.adapters.folder import aliases
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.digests import combine, digest
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery

logger = logging.getLogger(__name__)

#: Where the entry stands in a checkpoint.
ENTRY = checkpoint_file.SLIM
FIELDS = {"path": str, "relative": str, "sha256": str, "names": list, "names_sha256": str}


def read(path: str, base_path: str | None = None, trust: bool = False) -> dict:
    """A fairseq checkpoint, through torch's safe loader; a slim one is filled from its base.

    Args:
        base_path: where to look for the base before anywhere else.
        trust: as ``checkpoint_file.read`` takes it.

    Raises:
        InputError: it is cut short, no checkpoint, or would need to run code; or its base is not
            found.
    """
    state = checkpoint_file.read(path, trust)
    fill(state, path, base_path)
    return state


# ---- Writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseRef:
    """The base of a run, as its checkpoints refer to it.

    Attributes:
        path: of its file, absolute.
        sha256: its fingerprint.
        digests: name of a tensor that may be left out -> its digest in the base's file, and in a
            model that loaded it; the two differ where the file has another precision.
        tied: second name -> such a tensor, for a name that the base's file has not: an LM head's
            matrix, where the base has no LM head. Loading fills it in from the first.
    """

    path: str
    sha256: str
    digests: dict[str, tuple[str, str]]
    tied: dict[str, str]

    @classmethod
    def of(cls, model, start_state: dict, start_path: str) -> BaseRef:
        """Of a run of ``model`` that starts from the checkpoint ``start_state`` of ``start_path``.

        That is the base, unless it is slim itself: then its own base is the one, and
        ``start_path`` a checkpoint that training may overwrite.
        """
        entry = start_state.get(ENTRY) or {"path": os.path.abspath(start_path)}
        tensors = renamed(start_state["model"])
        # A slim checkpoint that was filled: what it held itself is not the base's.
        of_the_base = set(tensors).intersection(entry.get("names", tensors))
        own = model.state_dict()
        digests = {}
        for name in frozen_names(model):
            if name in of_the_base:
                in_file = digest(name, tensors[name])
                loaded = tensors[name].to(own[name].dtype)
                same = loaded.dtype == tensors[name].dtype
                digests[name] = (in_file, in_file if same else digest(name, loaded))
        sha256 = entry.get("sha256") or fingerprint(start_state["model"])
        tied = {
            second: first
            for second, first in aliases(own).items()
            if first in digests and second not in tensors
        }
        return cls(entry["path"], sha256, digests, tied)

    def leave_out(self, state: dict, folder: str) -> dict:
        """The checkpoint ``state``, about to be written to ``folder``, without what is the base's,
        and with the entry that tells what that is; ``state`` stays as it is."""
        weights = dict(state["model"])
        left_out = [
            name
            for name, (_, loaded) in self.digests.items()
            if name in weights and digest(name, weights[name]) == loaded
        ]
        for name in (*left_out, *(second for second, n in self.tied.items() if n in left_out)):
            weights.pop(name, None)
        entry = {
            "path": self.path,
            "relative": os.path.relpath(self.path, folder),
            "sha256": self.sha256,
            "names": left_out,
            "names_sha256": combine({name: self.digests[name][0] for name in left_out}),
        }
        return {**state, "model": weights, ENTRY: entry}


def base_ref_of_run(model, family, start_state: dict, start, save_dir: str) -> BaseRef | None:
    """What the checkpoints of a run refer to; None where they hold the whole model.

    That is where all of the body trains, where the run goes on from a whole checkpoint, and where
    the base lies among the checkpoints that the run writes, which may take its place.

    Args:
        start_state: the checkpoint that training starts from; ``start`` says which that is
            (``data.checks.Start``).
    """
    if all(parameter.requires_grad for parameter in surgery.tensors(model, family).values()):
        return None
    beside = os.path.realpath(os.path.dirname(start.path)) == os.path.realpath(save_dir)
    if beside and ENTRY not in start_state:
        logger.info(f"checkpoints hold the whole model, as {start.path} in the same folder does")
        return None
    base_ref = BaseRef.of(model, start_state, start.path)
    logger.info(
        f"checkpoints hold what trains, and refer to {base_ref.path} (sha256 "
        f"{base_ref.sha256[:12]}) for the {len(base_ref.digests)} tensors that do not"
    )
    return base_ref


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


def fill(state: dict, path: str, base_path: str | None = None) -> None:
    """Put what a slim checkpoint leaves out back into ``state``; a whole one stays as it is.

    The entry stays, its ``path`` where the base was found.

    Args:
        path: the checkpoint's file.
        base_path: where to look for the base before anywhere else.

    Raises:
        InputError: the base is not found, or is another one.
    """
    if ENTRY not in state:
        return
    entry = _sound_entry(state)
    if entry is None:
        raise InputError(
            f"{path} refers to its base by something else than {', '.join(FIELDS)}: it is damaged, "
            "or of another version of this plugin. Give another checkpoint."
        )
    missing = [name for name in entry["names"] if name not in state["model"]]
    if not missing:
        return
    found_path, base_weights = _find_base(entry, path, base_path)
    state["model"].update({name: base_weights[name] for name in missing})
    state[ENTRY] = {**entry, "path": found_path}


def _sound_entry(state: dict) -> Mapping | None:
    """The entry of a slim checkpoint; None where there is none, or none to be relied on."""
    entry = state.get(ENTRY)
    sound = isinstance(entry, Mapping) and all(
        isinstance(entry.get(field), kind) for field, kind in FIELDS.items()
    )
    return entry if sound and all(isinstance(name, str) for name in entry["names"]) else None


def _find_base(entry, path, base_path):
    """Where the base of ``entry`` is, and its weights; ``path`` is the slim checkpoint's.

    A base that is named has to be the right one; elsewhere a wrong file is passed over while there
    are other places.
    """
    folder = os.path.dirname(os.path.abspath(path))
    places = [
        base_path,
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
        other = _sound_entry(state)
        if other is not None and other["sha256"] == entry["sha256"]:
            continue  # a slim checkpoint on the same base
        reason = _difference(entry, state["model"])
        if reason is None:
            _found[entry["sha256"]] = place
            return place, renamed(state["model"])
        wrong.append(f"{place} {reason}")
        if base_path and place == os.path.abspath(base_path):
            break
    seen = "; ".join(wrong) or f"there is no file {' or '.join(places)}"
    raise InputError(
        f"{path} holds only what was trained on the base {entry['path']} (sha256 "
        f"{entry['sha256'][:12]}), but {seen}. Put that base back, or beside the checkpoint, or "
        "name it: fairseq-train --finetune-from-model FILE, fairseq-peft merge --base FILE, "
        "fairseq-validate --model-overrides \"{'finetune_from_model': 'FILE'}\"."
    )


def _difference(entry, base_weights):
    """What tells these weights from those of the base that ``entry`` refers to, or None: "has no
    encoder.lm_head.bias"."""
    try:
        sha256 = fingerprint(base_weights)
    except InputError:
        return "holds no model"
    if sha256 != entry["sha256"]:
        return f"is another one (sha256 {sha256[:12]})"
    tensors = renamed(base_weights)
    lacking = [name for name in entry["names"] if name not in tensors]
    if lacking:
        return f"has no {lacking[0]}"
    digests = {name: digest(name, tensors[name]) for name in entry["names"]}
    return None if combine(digests) == entry["names_sha256"] else "has another LM head"
