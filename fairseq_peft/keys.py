"""Exact accounting of the keys of a checkpoint."""

from __future__ import annotations

from fairseq_peft.errors import InputError

#: What a method adds: part of the name, and what explains a difference there.
_METHOD_CAUSES = {
    "lora_": "the checkpoint was trained with another --peft, --lora-rank or --peft-targets",
    "adapter.": "the checkpoint was trained with another --peft, --adapter-bottleneck or "
    "--adapter-placement",
    "soft_prompt.": "the checkpoint was trained with another --peft or --prompt-num-tokens",
}
#: The same for the base, the most telling first.
_BASE_CAUSES = {
    "layers.": "the checkpoint is of another architecture: give the --arch it was trained with",
    "embed_tokens.weight": "the data was prepared with another dictionary: prepare it with the "
    "checkpoint's own dict.txt",
    "embed_positions.weight": "give --max-positions the checkpoint's number of rows less 2",
}


def _cause(items):
    """The likely cause of differences in the tensors ``items``, or None."""
    base = [item for item in items if not any(part in item for part in _METHOD_CAUSES)]
    for causes, suspects in ((_BASE_CAUSES, base), (_METHOD_CAUSES, items)):
        for part, text in causes.items():
            if any(part in item for item in suspects):
                return text
    return None


def account(found, expected) -> None:
    """Raise unless ``found`` and ``expected`` (name -> tensor) have the same names and shapes.

    Raises:
        InputError: with the counts, up to three examples of each kind, and the likely cause.
    """
    missing = [key for key in expected if key not in found]
    left_over = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
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
    cause = _cause(shapes + left_over + missing)
    hint = f" Likely cause: {cause}." if cause else ""
    raise InputError(f"The checkpoint does not fit the model: tensors {', '.join(problems)}.{hint}")
