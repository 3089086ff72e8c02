"""What a run on a base is, its architecture, its task and its rows: the base tells it.

A checkpoint of fairseq's, or none, becomes a classifier; a folder of Hugging Face's answers in
words.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from fairseq_peft import scores
from fairseq_peft.architectures.hf_configs import KINDS
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.text import pairs
from fairseq_peft.text.kinds import kind_of

CONFIG = "config.json"
#: Architecture -> the task of its models.
TASKS = {"hf_causal_lm": "causal_lm", "hf_seq2seq": "text_to_text"}


def is_folder(base: str | None) -> bool:
    """Whether a base is a folder of Hugging Face's."""
    return base is not None and Path(base).is_dir()


def base_of(knobs) -> Checkpoint | Folder:
    """What the base of a run's ``knobs.Knobs`` tells."""
    return (Folder if is_folder(knobs.base) else Checkpoint)(knobs)


class Checkpoint:
    """A classifier of fairseq's, from a checkpoint or from random weights."""

    def __init__(self, knobs):
        self.knobs = knobs

    @property
    def kind(self) -> str:
        """Of the task (``scores``)."""
        return kind_of(self.knobs.data)

    def words(self) -> list[str]:
        """Architecture, task, criterion and start of fairseq-train.

        Raises:
            InputError: a knob would be ignored.
        """
        knobs = self.knobs
        if knobs.labels:
            raise InputError(
                f"--labels {knobs.labels} would be ignored: the classes of such data are in its "
                "label/dict.txt. Leave it out, or give --base a folder of a model of Hugging "
                "Face's, whose answers are words."
            )
        size = knobs.size
        if size == "auto":
            size = "roberta" if knobs.base else "roberta_small"
        if not re.search("[+,]", knobs.method):
            arch = ["--arch", f"{size}_{knobs.method}"]
        else:
            name = "roberta_peft" if size == "roberta" else size
            arch = ["--arch", name, "--peft", knobs.method]
        start = ["--finetune-from-model", knobs.base] if knobs.base else ["--from-scratch"]
        name = "sentence_classification"
        return [*arch, *_label(knobs), "--task", name, "--criterion", name, *start]

    def num_rows(self, split: str) -> int:
        """Rows of a split; ``InputError`` where there is none."""
        return num_rows(Path(self.knobs.data), split)


class Folder:
    """A model of Hugging Face's, and rows of what is asked and what is answered."""

    def __init__(self, knobs):
        self.knobs = knobs

    @property
    def kind(self) -> str:
        """Of the task (``scores``): where labels are the answers, one is right."""
        return scores.CLASSES if self.knobs.labels else scores.TEXT

    @property
    def arch(self) -> str:
        """The architecture of such models.

        Raises:
            InputError: it is no folder of a model, or of one that is not known.
        """
        path = Path(self.knobs.base) / CONFIG
        try:
            kind = json_of(path.read_bytes()).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(
                f"--base {self.knobs.base} is a folder, and its {CONFIG} cannot be read ({error}). "
                "Give a checkpoint of fairseq's, or a folder with config.json, model.safetensors "
                "and tokenizer.json."
            ) from None
        for arch, kinds in KINDS.items():
            if kind in kinds:
                return arch
        known = ", ".join(kind for kinds in KINDS.values() for kind in kinds)
        raise InputError(
            f"--base {self.knobs.base} is a model of type {kind!r}; those that answer in text are "
            f"{known}. Others become checkpoints of fairseq's first: fairseq-peft from-hf."
        )

    def words(self) -> list[str]:
        """As ``Checkpoint.words``."""
        knobs, arch = self.knobs, self.arch
        for name, value, usual in (
            ("size", knobs.size, "auto"),
            ("class-weights", knobs.class_weights, "none"),
        ):
            if value != usual:
                raise InputError(
                    f"--{name} {value} would be ignored: {knobs.base} is a model of Hugging "
                    "Face's. Leave it out."
                )
        words = ["--arch", arch, "--hf-model", knobs.base, "--peft", knobs.method, *_label(knobs)]
        words += ["--task", TASKS[arch], "--criterion", "answers"]
        if knobs.labels:
            words += ["--labels", knobs.labels]
        if knobs.metric in scores.ROUGE and "--eval-rouge" not in knobs.flags:
            words.append("--eval-rouge")
        return words

    def num_rows(self, split: str) -> int:
        """As ``Checkpoint.num_rows``."""
        return len(pairs.read(self.knobs.data, split, pairs.COLUMNS[TASKS[self.arch]]))


def _label(knobs):
    return ["--method-label", knobs.label] if knobs.label != knobs.method else []


def num_rows(data: Path, split: str = "train") -> int:
    """Rows of a split of a classifier's data, from the index of its labels, which holds their
    number behind 18 bytes."""
    path = data / "label" / f"{split}.idx"
    if (data / "label" / f"{split}.label").exists():  # a number a row
        path = data / "input0" / f"{split}.idx"
    try:
        with open(path, "rb") as file:
            return struct.unpack("<Q", file.read(26)[18:])[0]
    except FileNotFoundError:
        texts = [data / f"{split}{end}" for end in pairs.ENDS]
        if any(path.is_file() for path in texts):
            raise InputError(
                f"{data} has rows of texts, which models of Hugging Face's learn to answer: give "
                "--base the folder of one, with its weights. Random ones: docs/hf-models.md."
            ) from None
        raise InputError(
            f"{path} does not exist. Make the folder with scripts/prepare_data.sh."
        ) from None
    except (OSError, struct.error) as error:
        raise InputError(f"{path} cannot be read ({error}). Prepare the data again.") from None
