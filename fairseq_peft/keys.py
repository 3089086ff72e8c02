"""Exact accounting of the keys of a checkpoint."""

from __future__ import annotations

from fairseq_peft.errors import InputError

_CAUSES = [
    (
        "embed_tokens.weight",
        "the data was prepared with another dictionary: prepare it with the checkpoint's own "
        "dict.txt",
    ),
    ("embed_positions.weight", "give --max-positions the checkpoint's number of rows less 2"),
    ("lora_", "the checkpoint was trained with another --lora-rank or --peft-targets"),
    (
        "adapter.",
        "the checkpoint was trained with another --adapter-bottleneck or --adapter-placement",
    ),
    ("soft_prompt.", "the checkpoint was trained with another --prompt-num-tokens"),
    ("layers.", "the checkpoint is of another architecture: give the --arch it was trained with"),
]


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
    suspects = shapes + left_over + missing
    cause = next((text for part, text in _CAUSES if any(part in item for item in suspects)), None)
    hint = f" Likely cause: {cause}." if cause else ""
    raise InputError(f"The checkpoint does not fit the model: tensors {', '.join(problems)}.{hint}")
