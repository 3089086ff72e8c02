"""What a data folder has for each row: a class, any number of labels, or a number (``scores``).

label/dict.txt, label/SPLIT.bin and .idx     a class a row; with kind.txt that says ``labels``
                                             any number of labels a row, none included
label/SPLIT.label                            a number a line, as stock fairseq has it with
                                             --regression-target
"""

from __future__ import annotations

from pathlib import Path

from fairseq_peft import scores
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError

#: Name of the output of a model that predicts a number.
NUMBER_NAME = "number"


def names(data: str | Path, kind: str) -> list[str]:
    """Names of the model's outputs, in their order.

    Raises:
        InputError: there is no dictionary of labels, or it names too few.
    """
    if kind == scores.NUMBER:
        return [NUMBER_NAME]
    dictionary = checks.load_dictionary(str(Path(data) / "label" / "dict.txt"))
    return checks.class_names(dictionary, 1 if kind == scores.LABELS else 2)


def outputs(labels: list[str], kind: str) -> list[str]:
    """What a model's outputs are called that come from elsewhere as ``labels``."""
    return [NUMBER_NAME] if kind == scores.NUMBER and len(labels) == 1 else labels


def check_kind(data: str | Path, kind: str, before: str) -> None:
    """Raise InputError where a checkpoint was trained on rows of another kind than ``data`` has."""
    if kind != before:
        raise InputError(
            f"{data} has {DESCRIBED[kind]}, the checkpoint was trained on {DESCRIBED[before]}. "
            "Give data of the same kind (KIND= of scripts/prepare_data.sh), or start from its base."
        )


#: Kind -> in words.
DESCRIBED = {
    scores.CLASSES: "a class a row",
    scores.LABELS: "any number of labels a row",
    scores.NUMBER: "a number a row",
}
