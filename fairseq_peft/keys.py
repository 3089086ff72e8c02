"""Exact accounting of the keys of a checkpoint."""

from __future__ import annotations

import re

from fairseq_peft.errors import InputError

#: Second copies of the weights that stock fairseq 0.12.2 writes into its checkpoints.
DUPLICATES = re.compile(r"\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$")

#: Part of a base tensor's name -> what explains a difference there, the most telling first.
_BASE_CAUSES = {
    "layers.": "the checkpoint is of another architecture: give the --arch it was trained with",
    "embed_tokens.weight": "the data was prepared with another dictionary: prepare it with the "
    "checkpoint's own dict.txt, and behind it the words that its task added, such as languages and "
    "<mask>; fairseq-peft add-tokens gives a checkpoint rows for new ones",
    "embed_positions.weight": "give --max-positions the checkpoint's number of rows less 2",
}
_BASE_NAME = re.compile(
    r"(layers\.\d+\.(self_attn\.)?(\w+_proj|fc\d|\w+_norm)|embed_\w+|layernorm_embedding|layer_norm)"
    r"\.(weight|bias)$"
)


def _cause(names, flags):
    """The likely cause of differences in the tensors ``names``, or None."""
    base = [name for name in names if _BASE_NAME.search(name)]
    for part, text in _BASE_CAUSES.items():
        if any(part in name for name in base):
            return text
    if len(base) == len(names):
        return None
    others = ["--" + flag.replace("_", "-") for flag in ("peft", *flags)]
    return f"the checkpoint was trained with another value of {' or '.join(others)}"


def account(found, expected, flags=()) -> None:
    """Raise unless ``found`` and ``expected`` (name -> tensor) have the same names and shapes.

    Args:
        found, expected: the checkpoint's tensors, the model's.
        flags: attribute names of the flags that decide which tensors the model's methods add.

    Raises:
        InputError: with the counts, up to three examples of each kind, and the likely cause.
    """
    missing = [key for key in expected if key not in found]
    left_over = [key for key in found if key not in expected]
    reshaped = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    shapes = [
        f"{key} is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in reshaped
    ]
    problems = [
        f"{len(items)} {kind} ({'; '.join(items[:3])}{'; ...' if len(items) > 3 else ''})"
        for kind, items in [
            ("of another shape", shapes),
            ("missing", missing),
            ("left over", left_over),
        ]
        if items
    ]
    if not problems:
        return
    cause = _cause(reshaped + left_over + missing, flags)
    hint = f" Likely cause: {cause}." if cause else ""
    raise InputError(f"The checkpoint does not fit the model: tensors {', '.join(problems)}.{hint}")
