"""The description in adapter.json: its fields, and the seal that shows whether it was changed."""

from __future__ import annotations

import hashlib
import json
import re

from fairseq_peft.errors import InputError
from fairseq_peft.text import bpe

SCHEMA = 1
TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"
DICTIONARY, TOKENIZER = "dict.txt", "sentencepiece.bpe.model"
FILES = (TENSORS, DESCRIPTION, DICTIONARY, *bpe.FILES)

#: fairseq's names of the dictionaries of a source and a target: ``dict.en.txt``.
OF_A_LANGUAGE = r"dict\.[\w-]+\.txt"
#: Names of what may be part of a folder.
PARTS = re.compile("|".join([*map(re.escape, FILES), OF_A_LANGUAGE]))
#: Field -> type, or fields within it, for what loading reads; the rest is for people.
FIELDS = {
    "method": {"peft": str, "knobs": dict, "targets": list},
    "model": dict,  # flag -> value: what builds the model
    "complete": bool,  # the tensors are the whole model, no base is needed
    "tensors": dict,  # name -> dtype, shape
    "files": dict,  # name -> sha256, bytes
}
#: Those of a classifier, besides.
CLASSIFIER = {
    "head": {"name": str, "kind": str, "num_classes": int},
    "labels": list,  # class names in the order of the outputs
    "input": {"max_tokens": int, "begin": bool, "num_texts": int},  # how texts become tokens
    "dictionary": {"sha256": str, "num_rows": int},  # of the symbols in their order
}
#: Those of a model of another task, which answers with text, besides.
TEXT = {
    "task": dict,  # fairseq's flags of it, its name as _name
    "dictionaries": dict,  # source, target -> file, sha256, num_rows
}
#: Those of a model of Hugging Face's, besides: its words are those of a tokenizer in its folder.
OF_A_FOLDER = {"task": dict, "tokenizer": {"name": str, "sha256": str}}
#: adapter.json begins with these bytes; 64 digits follow, taken with zeros in their place.
_SEAL = b'{\n "json_sha256": "'
_BLANK = "0" * 64
AGAIN = "Copy the folder again, or train again."


def seal(description: dict) -> bytes:
    """The text of adapter.json: its first field is the SHA-256 of the text with zeros there."""
    fields = {"json_sha256": _BLANK, "schema": SCHEMA, **description}
    text = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A command line may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    data = text.encode("utf-8", "surrogatepass")
    return data.replace(_BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def unseal(data: bytes, path) -> dict:
    """The description in the text of adapter.json.

    Raises:
        InputError: it is not as it was written, or of another version.
    """
    try:
        description = json.loads(data)
        schema = description["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: expected a JSON object with a schema. {AGAIN}"
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
            f"{description.get('json_sha256', 'nothing')!s:.12}. {AGAIN}"
        )
    lacking = _lacking(description, {**FIELDS, **_fields_of_kind(description)})
    if description.get("base") is None and description.get("complete") is False:
        lacking.append("base")
    elif description.get("base") is not None:
        lacking += _lacking(description, {"base": {"path": str, "sha256": str}})
    if not lacking:
        lacking = _lacking_within(description)
    if lacking:
        raise InputError(f"{path} lacks {lacking[0]}, which every adapter has. {AGAIN}")
    return description


def is_text(description: dict) -> bool:
    """Whether the folder is of a model that answers with text, and no classifier's."""
    return "task" in description


def is_of_folder(description: dict) -> bool:
    """Whether its base is a folder of Hugging Face's."""
    return "tokenizer" in description


def _fields_of_kind(description):
    if not is_text(description):
        return CLASSIFIER
    return OF_A_FOLDER if is_of_folder(description) else TEXT


def is_part(name: str) -> bool:
    """Whether a file of this name may be part of an adapter folder."""
    return PARTS.fullmatch(name) is not None


def _lacking_within(description):
    measured, shaped = {"sha256": str, "bytes": int}, {"dtype": str, "shape": list}
    lacking = [
        lack
        for field, of_each in (("files", measured), ("tensors", shaped))
        for name, found in description[field].items()
        for lack in _lacking(found, of_each, f"{field}.{name:.40}.")
    ]
    if lacking:
        return lacking
    if not is_text(description):
        one_each = len(description["labels"]) == description["head"]["num_classes"]
        return [] if one_each else ["labels, one for each class of the head"]
    if is_of_folder(description):
        return []
    of_each = {"file": str, "sha256": str, "num_rows": int}
    found = description["dictionaries"]
    return [
        lack
        for side in ("source", "target")
        for lack in _lacking(found.get(side), of_each, f"dictionaries.{side}.")
    ]


def _lacking(description, fields, within="") -> list[str]:
    """The fields that are not there, or not of their type."""
    if not isinstance(description, dict):
        return [within[:-1]]
    found = []
    for field, kind in fields.items():
        value = description.get(field)
        if not isinstance(value, dict if isinstance(kind, dict) else kind):
            found.append(within + field)
        elif isinstance(kind, dict):
            found += _lacking(value, kind, f"{field}.")
    return found


def measure(data: bytes) -> dict:
    """What ``files`` says of a file's content."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
