"""The adapter folder: what a task has trained, small and checkable, beside the base it belongs to.

    adapter.safetensors       the tensors that the base does not give: the method's, base tensors
                              that it trained or corrected, the head; or a complete model
    adapter.json              the description (seal.py), sealed by its own SHA-256
    dict.txt, sentencepiece.bpe.model   copies: folder and base are enough to classify; where the
                              text is of another --bpe, bpe.json and its files are in place of the
                              last (text/bpe.py)
    dict.en.txt, dict.fr.txt  in place of dict.txt, where source and target have languages

Only safetensors and JSON are read, and every byte of the files is covered by a SHA-256.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from fairseq_peft import folders
from fairseq_peft.adapters.base import (
    body,
    check_base,
    check_fingerprint,
    fingerprint,
    renamed,
)
from fairseq_peft.adapters.seal import (
    AGAIN,
    DESCRIPTION,
    DICTIONARY,
    FILES,
    TENSORS,
    TOKENIZER,
    is_of_folder,
    is_part,
    is_text,
    measure,
    seal,
    unseal,
)
from fairseq_peft.errors import InputError
from fairseq_peft.keys import account
from fairseq_peft.text import bpe
from fairseq_peft.text.subwords import Subwords

__all__ = [
    "DESCRIPTION",
    "DICTIONARY",
    "FILES",
    "TENSORS",
    "TOKENIZER",
    "AdapterFolder",
    "apply",
    "body",
    "check_base",
    "check_fingerprint",
    "check_place",
    "fingerprint",
    "read",
    "renamed",
    "seal",
    "write",
]


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder that was read and verified.

    Attributes:
        folder: where it was read.
        description: the content of adapter.json.
        tensors: name in the model -> tensor.
    """

    folder: Path
    description: dict
    tensors: dict[str, torch.Tensor]

    @property
    def dictionary(self) -> Path:
        """The dict.txt of a classifier's folder."""
        return self.folder / DICTIONARY

    @property
    def is_text(self) -> bool:
        """Whether it is of a model that answers with text, and no classifier's."""
        return is_text(self.description)

    @property
    def is_of_folder(self) -> bool:
        """Whether its base is a folder of Hugging Face's."""
        return is_of_folder(self.description)

    @property
    def text_files(self) -> dict[str, Path]:
        """Name -> file, of those that text is cut into pieces with; empty where the data had
        none."""
        return {n: self.folder / n for n in bpe.FILES if n in self.description["files"]}

    def subwords(self) -> Subwords | None:
        """What cuts text into pieces; None where the data had nothing of the kind.

        Raises:
            InputError: one of its files is not what it should be.
        """
        return bpe.find(self.folder) if self.text_files else None


def write(
    folder: Path | str,
    tensors: Mapping[str, torch.Tensor],
    description: dict,
    copies: Mapping[str, Path | bytes],
) -> None:
    """Make ``folder`` hold exactly this adapter. A reader sees the one before or this one.

    Args:
        tensors: name in the model -> tensor.
        description: ``FIELDS`` without tensors and files, and what else is worth telling.
        copies: names of dictionaries, and of ``bpe.FILES`` -> the file to copy, or its content.

    Raises:
        InputError: it cannot be written; what the folder held before is there still.
    """
    folder = Path(folder)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        check_place(folder)
        with folders.replaced(folder) as new:
            (new / TENSORS).write_bytes(safetensors.torch.save(plain, {"format": "pt"}))
            for name, source in copies.items():
                if isinstance(source, bytes):
                    (new / name).write_bytes(source)
                else:
                    shutil.copyfile(source, new / name)
            names = sorted(path.name for path in new.iterdir() if is_part(path.name))
            files = {name: measure((new / name).read_bytes()) for name in names}
            described = {**description, "tensors": _table(plain), "files": files}
            (new / DESCRIPTION).write_bytes(seal(described))
            _carry_over(folder, new)
    except OSError as error:
        raise InputError(
            f"The adapter folder {folder} cannot be written ({error.strerror or error}); what it "
            "held before is as it was. Make room or rights there, or give another place."
        ) from error


def check_place(folder: Path | str) -> None:
    """Raise InputError where ``folder`` holds what is no part of an adapter and would be lost."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, where an adapter folder is to be. Move it.")
    others = sorted(
        path.name
        for path in folder.iterdir()
        if not is_part(path.name) and not folders.is_litter(path)
    )
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, which is no part of an adapter and would be lost when "
            "the next one is written. Move it."
        )


def read(folder: Path | str, of_any_task: bool = False) -> AdapterFolder:
    """The adapter in ``folder``, with everything verified that can be without its base.

    Args:
        of_any_task: whether one will do that is no classifier's.

    Raises:
        InputError: what is there, and what was expected.
    """
    found = _read(folder)
    if found.is_text and not of_any_task:
        raise InputError(
            f"{folder} is of --task {found.description['task'].get('_name')}, and this is for "
            "classifiers. fairseq-peft generate takes it."
        )
    return found


def _read(folder):
    folder, contents = _contents(folder)
    description = unseal(contents[DESCRIPTION], folder / DESCRIPTION)
    _check_files(folder, contents, description)
    try:
        tensors = safetensors.torch.load(contents[TENSORS])
    except Exception as error:  # what safetensors raises of damaged data is its own
        raise InputError(f"{folder / TENSORS} is damaged ({error}). {AGAIN}") from error
    if _table(tensors) != description["tensors"]:
        detail = _difference(contents[TENSORS], description["tensors"])
        raise InputError(
            f"{folder / TENSORS} holds other tensors than {DESCRIPTION} names.{detail} {AGAIN}"
        )
    return AdapterFolder(folder, description, tensors)


def apply(model, adapter: AdapterFolder) -> None:
    """Copy the folder's tensors into ``model``, which has its base, its methods and its head.

    Raises:
        InputError: one is missing, left over or of another shape.
    """
    state = model.state_dict()
    own, seconds = model.own_names(), aliases(state)
    own = set(state) - seconds.keys() if adapter.description["complete"] else own
    own = without_seconds(own, seconds)
    account(adapter.tensors, {name: state[name] for name in own}, model.setting.flags())
    # torch's own loader, so that modules hear of it: VeRA draws its matrices from the loaded seed.
    torch.nn.Module.load_state_dict(model, adapter.tensors, strict=False)


def aliases(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Second name -> first name, for the tensors that ``state`` holds twice (tied weights)."""
    first, found = {}, {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            found[name] = first[place]
        first.setdefault(place, name)
    return found


def without_seconds(names: set[str], seconds: Mapping[str, str]) -> set[str]:
    """``names`` without those of ``seconds`` (``aliases``) whose first name is there, too."""
    return {name for name in names if seconds.get(name) not in names}


def _carry_over(folder: Path, new: Path) -> None:
    """Copy what is nobody's loss to ``new``; an .nfs file goes when the process that has it open
    ends."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if folders.is_litter(path) and path.is_file() and not path.name.startswith(".nfs"):
            with contextlib.suppress(OSError):
                shutil.copyfile(path, new / path.name)


def _contents(given):
    """Where the folder is, and name -> bytes of its files, all of one version: a run may be writing
    the next one."""
    for _ in range(100):
        folder = folders.current(given)
        try:
            description = (folder / DESCRIPTION).read_bytes()
            names = [path.name for path in folder.iterdir() if is_part(path.name)]
            found = {name: (folder / name).read_bytes() for name in names}
            if found.get(DESCRIPTION) == description == (folder / DESCRIPTION).read_bytes():
                return folder, found
        except (FileNotFoundError, NotADirectoryError):
            if not (folders.current(given) / DESCRIPTION).is_file():
                time.sleep(0.001)  # or is it being moved?
        except OSError as error:
            raise InputError(f"{given} cannot be read ({error.strerror}).") from error
    raise InputError(
        f"{given} is no adapter folder: it has no {DESCRIPTION}. Give the folder adapter/ in the "
        "save directory of a run."
    )


def _check_files(folder, contents, description):
    """Raise InputError unless the files are exactly those that the description speaks of."""
    expected = description["files"]
    needed = [TENSORS] if is_text(description) else [TENSORS, DICTIONARY]
    for name in sorted({*needed, *expected, *contents} - {DESCRIPTION}):
        if not is_part(name):
            raise InputError(f"{folder / DESCRIPTION} names {name[:40]!r}, no file of one. {AGAIN}")
        if name in expected and name not in contents:
            raise InputError(f"{folder / name} is missing; {DESCRIPTION} names it. {AGAIN}")
        if name not in expected:
            what = "is there" if name in contents else "is missing"
            raise InputError(f"{folder / name} {what}; {DESCRIPTION} does not name it. {AGAIN}")
        if name not in expected or measure(contents[name]) == expected[name]:
            continue
        found, wanted = measure(contents[name]), expected[name]
        detail = _difference(contents[name], description["tensors"]) if name == TENSORS else ""
        raise InputError(
            f"{folder / name} is not the file that {DESCRIPTION} speaks of: {found['bytes']:,} "
            f"bytes, sha256 {found['sha256'][:12]}; expected {wanted['bytes']:,}, "
            f"{wanted['sha256'][:12]}.{detail} {AGAIN}"
        )


def _difference(data, table) -> str:
    """Which tensors ``data`` lacks or has beyond the table, where it can be told."""
    try:
        found = set(safetensors.torch.load(data))
    except Exception:  # damaged data: what is raised depends on where
        return ""
    texts = {"missing": sorted(set(table) - found), "left over": sorted(found - set(table))}
    return "".join(f" Tensors {what}: {', '.join(n[:3])}." for what, n in texts.items() if n)


def _table(tensors):
    return {
        name: {"dtype": str(tensor.dtype).replace("torch.", ""), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }
