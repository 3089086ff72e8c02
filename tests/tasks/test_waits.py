"""What a GPU is waited for within a step: two numbers of an update, whatever the method."""

from __future__ import annotations

import pytest
import torch
import waits
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from fairseq_cli.train import get_training_stats
from families import Roberta, Transformer, TransformerLM
from helpers import HEAD, TOLERANCE, train_flags
from settings import parametrize

from fairseq_peft import methods
from fairseq_peft.criterions.on_host import together
from fairseq_peft.layers import attention
from fairseq_peft.optim.peft_adamw import norm_at_once

#: fairseq and the optimizer step only where the norm is finite; loss and counts are logged.
NORM, LOGGED = "optim/peft_adamw.py clip_grad_norm", "criterions/on_host.py together"
SETTINGS = [(name, {}) for name in methods.available()]
SETTINGS += [("lora", {"lora_init": "pissa"}), ("lora", {"peft_train_tokens": "<s>,<unk>"})]


@pytest.fixture(scope="module")
def setup(data_folder, tmp_path_factory):
    """What fairseq's trainer is made of, and a batch as it leaves the data."""
    words = train_flags(data_folder, tmp_path_factory.mktemp("run"), clip_norm=1.0)
    args = options.parse_args_and_arch(options.get_training_parser(), list(map(str, words)))
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    task.max_tokens, task.num_reserved, task.planned_updates = 16, 20, 10
    dataset = task.load_dataset("train")
    return cfg, task, dataset.collater([dataset[row] for row in range(8)])


def trainer_there(setup, monkeypatch, peft="lora", **given):
    """fairseq's trainer with a model on the device, where its batches go as to a GPU."""
    cfg, task, _ = setup
    model = Roberta(task.dictionary).build(peft, head=False, **given)
    model.register_classification_head(HEAD, num_classes=2, seed=1)
    waits.make_like_a_gpu(monkeypatch)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    trainer.model.to(waits.DEVICE)
    trainer._prepare_sample = lambda batch: (utils.move_to_cuda(batch, waits.DEVICE), False)
    trainer.begin_epoch(1)
    return trainer


@parametrize(SETTINGS)
def test_an_update_waits_for_the_norm_and_for_what_is_logged(setup, monkeypatch, peft, given):
    """The second one: state is made in the first. fairseq itself waits for nothing more, not when
    it prints its meters either."""
    trainer = trainer_there(setup, monkeypatch, peft, **given)
    with metrics.aggregate("train_inner", new_root=True), waits.Waits():
        trainer.train_step([setup[-1]])
    with metrics.aggregate("train_inner", new_root=True) as agg, waits.Waits() as found:
        assert trainer.train_step([setup[-1]]) is not None
        get_training_stats(agg.get_smoothed_values())
    assert found.ours == {NORM: 1, LOGGED: 1}
    assert len(found.found) == 2, found.found


def test_batches_that_are_one_update_wait_no_more(setup, monkeypatch):
    """--update-freq 3"""
    trainer = trainer_there(setup, monkeypatch)
    with metrics.aggregate(new_root=True), waits.Waits() as found:
        trainer.train_step([setup[-1]] * 3)
    assert found.ours == {NORM: 1, LOGGED: 1}


def test_a_batch_of_validation_waits_for_what_is_logged(setup, monkeypatch):
    trainer = trainer_there(setup, monkeypatch)
    with metrics.aggregate(new_root=True), waits.Waits() as found:
        trainer.valid_step(setup[-1])
    assert found.ours == {LOGGED: 1}
    assert len(found.found) == 1, found.found


def test_class_weights_go_to_the_device_once(setup, monkeypatch):
    trainer = trainer_there(setup, monkeypatch)
    trainer.criterion.class_weights = "1,2.5"
    for number in (1, 0):
        with metrics.aggregate(new_root=True), waits.Waits() as found:
            trainer.train_step([setup[-1]])
        there = {"criterions/sentence_classification.py forward": number} if number else {}
        assert found.ours == {NORM: 1, LOGGED: 1, **there}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (Transformer, {}),
        # Its batches are blocks without padding, for which torch's causal kernel takes no mask.
        (TransformerLM, {"models/decoder.py embed": 1}),
    ],
    ids=["transformer", "transformer_lm"],
)
def test_models_that_write(dictionary, batch, monkeypatch, family, expected):
    waits.make_like_a_gpu(monkeypatch)
    family = family(dictionary)
    model = family.build("lora").train().to(waits.DEVICE)
    with waits.Waits() as found:
        if family.name == "transformer":
            target = family.target(len(batch)).to(waits.DEVICE, non_blocking=True)
            logits, _ = model(batch.to(waits.DEVICE, non_blocking=True), None, target)
        else:
            logits, _ = model(batch.to(waits.DEVICE, non_blocking=True))
        logits.float().sum().backward()
    assert found.ours == expected


def test_layers_of_a_search_share_the_answer(dictionary, batch, monkeypatch):
    """Which rows of the memory the beams ask is found by the first layer."""
    waits.make_like_a_gpu(monkeypatch)
    family = Transformer(dictionary)
    model = family.build("lora").to(waits.DEVICE)
    source, target, state = batch.to(waits.DEVICE), family.target(4).to(waits.DEVICE), {}
    order = torch.arange(4, device=waits.DEVICE)
    with torch.no_grad(), waits.Waits() as found:
        memory = model.encoder(source)
        for length in (1, 2, 3):
            model.decoder(target[:, :length], memory, state)
            model.decoder.reorder_incremental_state_scripting(state, order.clone())
    # Two a step: where beams come from, and, as they have changed, to the device again.
    assert len(model.decoder.layers) == 2
    assert found.ours == {"layers/attention.py _rows_asked": 6}


# ---- What is computed in another way there is the same -------------------------------------------


@pytest.mark.parametrize("family", [Roberta, Transformer])
def test_a_mask_that_hides_nothing_changes_nothing(dictionary, batch, monkeypatch, family):
    """A CPU leaves it out, a GPU does not look."""
    family = family(dictionary)
    model, tokens = family.build("lora"), batch[:1].expand(3, -1)
    assert (tokens != dictionary.pad()).all()
    with torch.no_grad():
        without = family.scores(model, tokens)
        monkeypatch.setattr(attention, "may_have_padding", lambda padding: True)
        asked = []
        monkeypatch.setattr(
            attention, "attend", lambda *args, **kw: asked.append(args[3]) or attend(*args, **kw)
        )
        masked = family.scores(model, tokens)
    assert asked and all(keep is not None and keep.any() for keep in asked)
    assert (masked - without).abs().max() < TOLERANCE["fp32"]


attend = attention.attend


def test_one_copy_brings_numbers_as_they_are():
    numbers = [torch.tensor(1 / 3), torch.tensor([[2**40 + 1, 3]]), torch.rand(6).double()]
    found = together(numbers)
    assert [number.dtype for number in found] == [number.dtype for number in numbers]
    assert all(map(torch.equal, found, numbers))


def test_the_norm_of_all_tensors_at_once_is_fairseqs():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 1, 7))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    found = norm_at_once([parameter.grad for parameter in parameters])
    assert found == pytest.approx(utils.clip_grad_norm_(parameters, 0).item(), rel=1e-6)


# ---- The tool ------------------------------------------------------------------------------------

X = torch.ones(3, device=waits.DEVICE)
ASKED = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X.sum()),
    "bool": lambda: bool(X.any()),
    "if": lambda: 1 if X.any() else 0,
    "index": lambda: range(X.sum().long()),
    "tolist": lambda: X.tolist(),
    "cpu": lambda: X.cpu(),
    "numpy": lambda: X.cpu().numpy(),
    "equal": lambda: torch.equal(X, X),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 0),
    "mask": lambda: X[X > 0],
    "put": lambda: X.__setitem__(X > 0, X[:2]),
    "masked_select": lambda: X.masked_select(X > 0),
    "bincount": lambda: X.long().bincount(minlength=2),
    "unique": lambda: X.unique(),
    "solve": lambda: torch.linalg.solve(X.expand(3, 3), X.expand(3, 3)),
    "tensor": lambda: torch.tensor(1.0, device=waits.DEVICE),
    "new_tensor": lambda: X.new_tensor(1.0),
    "to": lambda: torch.ones(2).to(waits.DEVICE),
    "copy": lambda: X.copy_(torch.ones(3)),
}
NOT_ASKED = {
    "fill": lambda: torch.full((), 1.0, device=waits.DEVICE),
    "masked_fill": lambda: X.masked_fill(X > 0, 0),
    "put one": lambda: X.__setitem__(X > 0, 1.0),
    "rows": lambda: X[torch.zeros(2, dtype=torch.long, device=waits.DEVICE)],
    "to later": lambda: torch.ones(2).to(waits.DEVICE, non_blocking=True),
    "solve_ex": lambda: torch.linalg.solve_ex(X.expand(3, 3), X.expand(3, 3)),
    "elsewhere": lambda: torch.ones(2).sum().item(),
}


@pytest.mark.parametrize(
    ("run", "number"),
    [(run, 1) for run in ASKED.values()] + [(run, 0) for run in NOT_ASKED.values()],
    ids=[*ASKED, *NOT_ASKED],
)
def test_each_kind_of_wait_is_seen(run, number):
    with waits.Waits() as found:
        run()
    assert sum(found.found.values()) == number, found.found
