"""Every setting goes through every way in which a model is used.

A way is a function here that is given a run of a setting: two epochs on a base, made by fairseq's
own ``fairseq-train`` in this process. Two more ways have files of their own, for every setting as
well: many adapters on one base (tests/serving/test_shared_base.py), and members that train together
(tests/sweeps/test_members.py).
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import verbs
from fairseq import checkpoint_utils, options
from fairseq.dataclass.initialize import add_defaults
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.roberta import RobertaModel
from fairseq_cli import train
from families import Roberta
from helpers import (
    TINY,
    TOLERANCE,
    WORD_START,
    random_rows,
    train_flags,
    word_tokenizer,
    write_data,
)
from settings import collect, identifier

import fairseq_peft
from fairseq_peft import methods
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import finetuned, slim
from fairseq_peft.models.options import METHOD_FIELDS

pytestmark = [pytest.mark.end_to_end, pytest.mark.ways]

ROWS = random_rows(sizes=(("train", 16), ("valid", 7)), longest=9)
TEXTS = [" ".join(f"w{word}" for word in words) for words, _ in ROWS["valid"]]
LABELS = ["bad", "good"]
TARGETS = torch.tensor([LABELS.index(label) for _, label in ROWS["valid"]])


@dataclass
class Run:
    """A finished run.

    Attributes:
        base: the checkpoint that it started from.
        folder: its save directory.
        train: ``train(folder)``: the same setting in another folder, which may hold a checkpoint.
    """

    base: Path
    folder: Path
    train: Callable

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint_best.pt"

    @property
    def own_base(self) -> Path | None:
        """The base; None where the adapter folder holds the whole model."""
        complete = adapter_folder.read(self.adapter).description["complete"]
        return None if complete else self.base

    @property
    def base_flag(self) -> list:
        return ["--base", self.own_base] if self.own_base else []

    @property
    def told(self) -> dict:
        """What training said of valid in its best epoch."""
        epoch = adapter_folder.read(self.adapter).description["metrics"]["epoch"]
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[epoch - 1])["subsets"]["valid"]


@pytest.fixture(scope="module")
def run_of(dictionary, tmp_path_factory):
    """``run_of("lora", {...})``: the run of a setting, trained once for all ways."""
    place = tmp_path_factory.mktemp("ways")
    data = write_data(place / "data", ROWS, LABELS, mark=WORD_START)
    for folder in (place, data):
        shutil.copy(data / "input0" / "dict.txt", folder)
        (folder / adapter_folder.TOKENIZER).write_bytes(word_tokenizer())
    flags = train_flags(
        data,
        place,
        arch="roberta_small",
        max_epoch=2,
        lr=3e-2,
        valid_subset="valid",
        no_epoch_checkpoints=None,
        from_scratch=None,
        finetune_from_model=place,
    )
    parsed = options.parse_args_and_arch(options.get_training_parser(), flags)
    template = convert_namespace_to_omegaconf(parsed)  # takes longer than a run, as do defaults
    add_defaults(template)
    runs = {}

    def base_of(sizes):
        path = place / f"{identifier('base', sizes)}.pt"
        if not path.exists():
            state = Roberta(dictionary).build(seed=11, head=False, **sizes).state_dict()
            finetuned.write(path, {}, {"model": {"_name": "roberta_small", **TINY, **sizes}}, state)
        return path

    def run(peft, given, seed=1):
        base = base_of({f: value for f, value in given.items() if f not in METHOD_FIELDS})
        flags = {"peft": peft, **given}
        if "fusion" in peft:
            flags["fusion_adapters"] = ",".join(
                str(run(*adapter).adapter) for adapter in mixed(given)
            )

        def train_in(folder):
            cfg = copy.deepcopy(template)
            for flag, value in flags.items():
                cfg.model[flag] = value
            for part in (cfg.checkpoint, cfg.task):
                part.finetune_from_model, part.save_dir = str(base), str(folder)
            cfg.common.seed = cfg.task.seed = seed
            vars(checkpoint_utils.save_checkpoint).pop("best", None)  # of the run before
            train.main(cfg)

        key = identifier(peft, given), seed
        if key not in runs:
            runs[key] = Run(base, place / str(len(runs)), train_in)
            train_in(runs[key].folder)
        return runs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "add_defaults", lambda cfg: None)
        yield run


def mixed(given):
    """The settings and seeds of two adapters that a fusion of these flags can choose from."""
    others = ("fusion_dropout", "fusion_regularization")
    knobs = {f.replace("fusion", "adapter"): v for f, v in given.items() if f not in others}
    own = [flag for flag in knobs if flag.startswith("adapter_") or flag not in METHOD_FIELDS]
    return [("adapter", {flag: knobs[flag] for flag in own}, seed) for seed in (1, 2)]


# ---- The ways ------------------------------------------------------------------------------------


def validate(run, tmp_path, capsys):
    """As fairseq-validate does it: the checkpoint gives the figures that training logged."""
    model, cfg, task = loaded(run.checkpoint)
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.datasets["valid"], max_sentences=4)
    outputs = [
        task.valid_step(sample, model, criterion)[2]
        for sample in batches.next_epoch_itr(shuffle=False)
    ]
    hits = sum(output["_counts"][0].sum() for output in outputs)  # (3, classes)
    assert hits == run.told["num_correct"]
    loss = sum(output["loss"].item() for output in outputs) / len(TEXTS)
    assert loss == pytest.approx(run.told["loss"], abs=TOLERANCE["fp32"])


def predict(run, tmp_path, capsys):
    """Base and adapter folder, and the checkpoint, say of raw texts what training said of the same
    rows."""
    logits = predicted(run.own_base, run.adapter)
    assert (logits.argmax(1) == TARGETS).sum() == run.told["num_correct"]
    loss = F.cross_entropy(logits, TARGETS).item()
    assert loss == pytest.approx(run.told["loss"], abs=TOLERANCE["fp32"])
    close(predicted(run.checkpoint, None), logits)


def merge(run, tmp_path, capsys):
    """The merged file is one of fairseq's own model, with the same logits."""
    verbs.run("merge", run.adapter, tmp_path / "merged.pt", *run.base_flag)
    merged = loaded(tmp_path / "merged.pt")[0]
    assert type(merged) is RobertaModel
    close(scores(merged), scores(rebuilt(run.checkpoint)))


def no_merge(run, tmp_path, capsys):
    words = ("merge", run.adapter, tmp_path / "merged.pt", *run.base_flag)
    assert "cannot be merged" in verbs.refused(capsys, *words)


def export(run, tmp_path, capsys):
    """There and back: the same logits."""
    verbs.run("export", run.adapter, tmp_path / "theirs", *run.base_flag)
    verbs.run("import", tmp_path / "theirs", tmp_path / "ours", *run.base_flag)
    close(predicted(run.base, tmp_path / "ours"), predicted(run.base, run.adapter))


def no_export(run, tmp_path, capsys):
    words = ("export", run.adapter, tmp_path / "theirs", *run.base_flag)
    assert verbs.refused(capsys, *words)
    assert not (tmp_path / "theirs").exists()


def fold(run, tmp_path, capsys):
    """The folded checkpoint is smaller, with the same logits."""
    verbs.run("fold", run.checkpoint, tmp_path / "folded.pt")
    whole, folded = rebuilt(run.checkpoint), rebuilt(tmp_path / "folded.pt")
    assert folded.added != whole.added
    close(scores(folded), scores(whole))


def no_fold(run, tmp_path, capsys):
    words = ("fold", run.checkpoint, tmp_path / "folded.pt")
    assert "has nothing to fold" in verbs.refused(capsys, *words)


def resume(run, tmp_path, capsys):
    """From the checkpoint of epoch 1 to the same second epoch, bit for bit."""
    shutil.copy(run.folder / "checkpoint1.pt", tmp_path / "checkpoint_last.pt")
    run.train(tmp_path)
    one, other = (torch.load(f / "checkpoint_last.pt") for f in (run.folder, tmp_path))
    for part in ("model", "last_optimizer_state"):
        assert same(one[part], other[part]), part
    before = torch.load(run.folder / "checkpoint1.pt")
    assert not same(one["model"], before["model"])


def close(logits, expected):
    assert (logits - expected).abs().max() < TOLERANCE["fp32"]


def predicted(base, adapter):
    """(N, 2): what is predicted of the texts of valid."""
    classifier = fairseq_peft.Classifier.load(base, adapter)
    return torch.stack([logits for _, logits in classifier.logits(TEXTS)])


def loaded(checkpoint):
    """Model, configuration and task, as fairseq's programs load them."""
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)])
    return model.eval(), cfg, task


def rebuilt(checkpoint):
    return finetuned.rebuild(checkpoint, slim.read(str(checkpoint)))


def scores(model):
    """What the model says of random rows."""
    batches = finetuned.random_batches(model.encoder.dictionary, longest=20, number=1)
    (head,) = model.classification_heads
    return finetuned.logits(model, batches, head)


def same(one, other):
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# ---- Which settings go through them --------------------------------------------------------------


def every(peft, given):
    return True


def merges(peft, given):
    own = {flag: value for flag, value in given.items() if flag in METHOD_FIELDS}
    return methods.setting(peft, own).mergeable


def has_mlp(peft, given):
    return bool({"prompt_mlp", "prefix_mlp"} & set(given))


def goes_to_peft(peft, given):
    """One of the methods that Hugging Face PEFT has, as it has it, in a model that it has."""
    if "peft_train_tokens" in given:
        return False
    if peft == "prompt":
        return given.get("prompt_placement") == "before_bos"
    if peft == "prefix":
        return given.get("prefix_positions") == "reserved"
    return peft in ("lora", "dora", "ia3")


def no(chosen):
    return lambda peft, given: not chosen(peft, given)


#: Way -> the settings that go through it. What cannot be done is refused with a sentence.
WAYS = {
    validate: every,
    predict: every,
    merge: merges,
    no_merge: no(merges),
    export: goes_to_peft,
    no_export: no(goes_to_peft),
    fold: has_mlp,
    no_fold: no(has_mlp),
    resume: every,
}
CASES = [(way, *setting) for way in WAYS for setting in collect() if WAYS[way](*setting)]


@pytest.mark.parametrize(
    "way, peft, given", CASES, ids=[f"{way.__name__}-{identifier(*s)}" for way, *s in CASES]
)
def test_every_setting_goes_every_way(run_of, way, peft, given, tmp_path, capsys):
    way(run_of(peft, given), tmp_path, capsys)
