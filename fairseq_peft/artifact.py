"""The adapter folder: what a task has trained, small and checkable, beside the base it belongs to.

    adapter.safetensors       the tensors that the base does not give: the method's, base tensors
                              that it trained or corrected, the head; or a complete model
    adapter.json              the description (``FIELDS``), sealed by its own SHA-256
    dict.txt, sentencepiece.bpe.model   copies: folder and base are enough to classify

Only safetensors and JSON are read, and every byte of the four files is covered by a SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from fairseq_peft import folders
from fairseq_peft.artifact_base import body, check_base, fingerprint, renamed
from fairseq_peft.errors import InputError
from fairseq_peft.keys import account

__all__ = [
    "Artifact",
    "apply",
    "body",
    "check_base",
    "check_place",
    "fingerprint",
    "read",
    "renamed",
    "seal",
    "write",
]

SCHEMA = 1
TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"
DICTIONARY, TOKENIZER = "dict.txt", "sentencepiece.bpe.model"
FILES = (TENSORS, DESCRIPTION, DICTIONARY, TOKENIZER)

#: Field -> type, or fields within it, for what loading reads; the rest is for people.
FIELDS = {
    "method": {"peft": str, "knobs": dict, "targets": list},
    "model": dict,  # flag -> value: what builds the model
    "head": {"name": str, "kind": str, "num_classes": int},
    "labels": list,  # class names in the order of the outputs
    "input": {"max_tokens": int, "begin": bool, "num_texts": int},  # how texts become tokens
    "complete": bool,  # the tensors are the whole model, no base is needed
    "dictionary": {"sha256": str, "num_rows": int},  # of the symbols in their order
    "tensors": dict,  # name -> dtype, shape
    "files": dict,  # name -> sha256, bytes
}
#: adapter.json begins with these bytes; 64 digits follow, taken with zeros in their place.
_SEAL = b'{\n "json_sha256": "'
_BLANK = "0" * 64
_AGAIN = "Copy the folder again, or train again."


@dataclass(frozen=True)
class Artifact:
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
        """The dict.txt of the folder."""
        return self.folder / DICTIONARY

    @property
    def tokenizer(self) -> Path | None:
        """The sentencepiece model of the folder; None where the data had none."""
        return self.folder / TOKENIZER if TOKENIZER in self.description["files"] else None


def write(
    folder: Path | str,
    tensors: Mapping[str, torch.Tensor],
    description: dict,
    copies: Mapping[str, Path],
) -> None:
    """Make ``folder`` hold exactly this adapter. A reader sees the one before or this one.

    Args:
        tensors: name in the model -> tensor.
        description: ``FIELDS`` without tensors and files, and what else is worth telling.
        copies: ``DICTIONARY`` and, where there is one, ``TOKENIZER`` -> the file to copy.

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
                shutil.copyfile(source, new / name)
            files = {path.name: _measure(path.read_bytes()) for path in sorted(new.iterdir())}
            described = {**description, "tensors": _table(plain), "files": files}
            (new / DESCRIPTION).write_bytes(seal(described))
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
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, which is no part of an adapter and would be lost when "
            "the next one is written. Move it."
        )


def seal(description: dict) -> bytes:
    """The text of adapter.json: its first field is the SHA-256 of the text with zeros there."""
    fields = {"json_sha256": _BLANK, "schema": SCHEMA, **description}
    text = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    found = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(_BLANK, found, 1).encode()


def read(folder: Path | str) -> Artifact:
    """The adapter in ``folder``, with everything verified that can be without its base.

    Raises:
        InputError: what is there, and what was expected.
    """
    folder, contents = _contents(folder)
    description = _unseal(contents[DESCRIPTION], folder / DESCRIPTION)
    _check_files(folder, contents, description)
    tensors = safetensors.torch.load(contents[TENSORS])
    if _table(tensors) != description["tensors"]:
        detail = _difference(contents[TENSORS], description["tensors"])
        raise InputError(
            f"{folder / TENSORS} holds other tensors than {DESCRIPTION} names.{detail} {_AGAIN}"
        )
    return Artifact(folder, description, tensors)


def apply(model, artifact: Artifact) -> None:
    """Copy the artifact's tensors into ``model``, which has its base, its methods and its head.

    Raises:
        InputError: one is missing, left over or of another shape.
    """
    own, state = model.own_names(), model.state_dict()
    if artifact.description["complete"]:
        own = set(state) - aliases(state).keys()
    account(artifact.tensors, {name: state[name] for name in own}, model.setting.flags())
    with torch.no_grad():
        for name, tensor in artifact.tensors.items():
            state[name].copy_(tensor)


def aliases(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Second name -> first name, for the tensors that ``state`` holds twice (tied weights)."""
    first, found = {}, {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            found[name] = first[place]
        first.setdefault(place, name)
    return found


def _contents(given):
    """Where the folder is, and name -> bytes of its files, all of one version: a run may be writing
    the next one."""
    for _ in range(100):
        folder = folders.current(given)
        try:
            description = (folder / DESCRIPTION).read_bytes()
            found = {n: (folder / n).read_bytes() for n in FILES if (folder / n).exists()}
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


def _unseal(data, path):
    """The description in the text of adapter.json.

    Raises:
        InputError: it is not as it was written, or of another version.
    """
    try:
        description = json.loads(data)
        schema = description["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: expected a JSON object with a schema. {_AGAIN}"
        ) from error
    if schema != SCHEMA:
        raise InputError(
            f"{path} has schema {str(schema)[:20]}, this version reads {SCHEMA}. Load it with the "
            "version of fairseq_peft that wrote it."
        )
    start = len(_SEAL)
    blank = data[:start] + _BLANK.encode() + data[start + 64 :]
    expected, found = data[start : start + 64], hashlib.sha256(blank).hexdigest()
    if not data.startswith(_SEAL) or found.encode() != expected:
        raise InputError(
            f"{path} was changed after it was written: its sha256 is {found[:12]}, expected "
            f"{description.get('json_sha256', 'nothing')!s:.12}. {_AGAIN}"
        )
    lacking = _lacking(description, FIELDS)
    if description.get("base") is None and description.get("complete") is False:
        lacking.append("base")
    elif description.get("base") is not None:
        lacking += _lacking(description, {"base": {"path": str, "sha256": str}})
    if not lacking and len(description["labels"]) != description["head"]["num_classes"]:
        lacking.append("labels, one for each class of the head")
    if lacking:
        raise InputError(f"{path} lacks {lacking[0]}, which every adapter has. {_AGAIN}")
    return description


def _lacking(description, fields, within="") -> list[str]:
    """The fields that are not there, or not of their type."""
    found = []
    for field, kind in fields.items():
        value = description.get(field)
        if not isinstance(value, dict if isinstance(kind, dict) else kind):
            found.append(within + field)
        elif isinstance(kind, dict):
            found += _lacking(value, kind, f"{field}.")
    return found


def _check_files(folder, contents, description):
    """Raise InputError unless the files are exactly those that the description speaks of."""
    expected = description["files"]
    for name in (n for n in FILES if n != DESCRIPTION):
        if name in expected and name not in contents:
            raise InputError(f"{folder / name} is missing; {DESCRIPTION} names it. {_AGAIN}")
        if name not in expected and (name in contents or name != TOKENIZER):
            what = "is there" if name in contents else "is missing"
            raise InputError(f"{folder / name} {what}; {DESCRIPTION} does not name it. {_AGAIN}")
        if name not in expected or _measure(contents[name]) == expected[name]:
            continue
        found, wanted = _measure(contents[name]), expected[name]
        detail = _difference(contents[name], description["tensors"]) if name == TENSORS else ""
        raise InputError(
            f"{folder / name} is not the file that {DESCRIPTION} speaks of: {found['bytes']:,} "
            f"bytes, sha256 {found['sha256'][:12]}; expected {wanted['bytes']:,}, "
            f"{wanted['sha256'][:12]}.{detail} {_AGAIN}"
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


def _measure(data: bytes) -> dict:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
