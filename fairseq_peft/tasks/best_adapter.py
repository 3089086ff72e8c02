"""The adapter folder of a run: written anew whenever validation finds a new best."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from fairseq_peft import scores
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import slim
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError
from fairseq_peft.models import folder
from fairseq_peft.text import bpe

logger = logging.getLogger(__name__)


class BestAdapter:
    """Keeps ``SAVE_DIR/adapter`` at the best validation, as checkpoint_best.pt.

    It is written before the checkpoints: a run that is killed between the two repeats what came
    after the last one, and writes the same again.

    Args:
        save_dir: of the run.
        described: what the description says whatever the epoch.
        copies: dict.txt and the files that text is cut into pieces with.
        base: path and sha256 of the base; None from scratch.
        best: says which validation is the best (``runs.choice.Best``).
        resumes: whether a folder that is there is this run's own.

    Raises:
        InputError: the folder holds what would be lost.
    """

    def __init__(self, save_dir: str, described: dict, copies: dict, base, best, resumes):
        self.folder = Path(save_dir) / "adapter"
        self.described = described
        self.copies = copies
        self.base = base
        self.best = best
        self.told = False
        self.lost = False
        adapter_folder.check_place(self.folder)
        if resumes and best.update is not None:
            try:
                adapter_folder.read(self.folder)
            except InputError as error:
                self.lost = True
                logger.warning(f"{error} The next validation writes it anew, whatever it finds.")

    def offer(self, model, line: dict) -> None:
        """Write the folder if a validation, told by its line of metrics.jsonl, is the new best.

        Raises:
            InputError: it cannot be written.
        """
        if line["num_updates"] != self.best.update and not self.lost:
            return
        head = self.described["head_name"]
        tensors, described = folder.content(model, head, self.base)
        rest = {key: value for key, value in self.described.items() if key != "head_name"}
        metrics = metrics_of(self.best.choice, line)
        adapter_folder.write(
            self.folder, tensors, {**described, **rest, "metrics": metrics}, self.copies
        )
        self.lost = False
        sizes = self._sizes(tensors, described)
        logger.info(f"{self.folder}: {sizes}, new best of {self.best.choice.subset}")

    def _sizes(self, tensors, described):
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if described["complete"] and not self.told:
            self.told = True
            why = "there is no base" if self.base is None else "all of its body trains"
            logger.info(f"{self.folder} holds the whole model, because {why}")
        return f"{len(tensors)} tensors, {total:,} bytes"


def metrics_of(choice, line: dict) -> dict:
    """What a folder says of the validation that it is of, ``line`` of metrics.jsonl."""
    chosen = line["subsets"][choice.subset]
    return {
        "subset": choice.subset,
        "metric": choice.metric,
        "value": choice.value(line["subsets"]),
        **{name: value for name, value in chosen.items() if name == "accuracy"},
        "epoch": line["epoch"],
        "num_updates": line["num_updates"],
        "subsets": finite(line["subsets"]),
    }


def describe(cfg, model, run: dict, task) -> tuple[dict, dict]:
    """What a folder says and copies whatever the epoch: the description's part, and the files.

    Args:
        cfg: the task's config.
        run: the content of run.json.
        task: has ``dictionary``, ``labels``, ``max_tokens`` and the data sets.
    """
    dictionary = task.dictionary
    described = {
        "head_name": cfg.classification_head_name,
        "labels": list(task.labels),
        **({} if task.kind == scores.CLASSES else {"kind": task.kind}),
        "input": {
            "max_tokens": task.max_tokens,
            "begin": not cfg.no_init_token,
            "num_texts": len(task.datasets[cfg.train_subset].texts),
            "num_reserved": model.num_reserved,
            "max_positions": model.max_positions(),
        },
        "dictionary": {"sha256": checks.fingerprint(dictionary), "num_rows": len(dictionary)},
        "data": cfg.data,
        **{key: run[key] for key in ("seed", "arch", "hyperparameters", "versions", "command")},
    }
    data = Path(cfg.data)
    copies = {adapter_folder.DICTIONARY: data / "input0" / "dict.txt"}
    place = bpe.locate(data)
    if place is None:
        logger.warning(
            f"{data / adapter_folder.TOKENIZER} does not exist, so the adapter folder will read no "
            "raw text: copy the sentencepiece model there, or the files of another --bpe with "
            f"{bpe.TOLD} (scripts/prepare_data.sh does)"
        )
        return described, copies
    return described, {**copies, **place.files}


def describe_base(start, state: dict | None, save_dir: str) -> dict | None:
    """What the folder says of the base of a run: ``{"path": "/data/model.pt", "sha256": "3f..."}``;
    None for a run from scratch.

    A run that goes on from its own checkpoint has it from there, or, where that is a whole model,
    from the base that is named or from the folder that it wrote before.

    Args:
        start: where training starts (``data.checks.Start``).
        state: the checkpoint that it starts from.
    """
    if state is None:
        return None
    if not start.resumes:
        return folder.reference(start.base, state["model"])
    if slim.ENTRY in state:
        return {key: state[slim.ENTRY][key] for key in ("path", "sha256")}
    try:
        return adapter_folder.read(Path(save_dir) / "adapter", of_any_task=True).description["base"]
    except InputError:
        if start.base is None or not os.path.isfile(start.base):
            return None
        return folder.reference(start.base, slim.read(start.base)["model"])


def finite(value):
    """``value`` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
