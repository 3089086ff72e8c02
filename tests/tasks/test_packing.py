"""``--pack``: the rows of a batch one behind the other, each as if it were alone."""

from __future__ import annotations

import argparse
import contextlib

import hf_families
import numpy as np
import pytest
import torch
from adapter_folders import moved
from helpers import PACKAGE
from hf_families import GPT2, WINDOWED, Kind, write_base, write_rows

from fairseq_peft.criterions.answers import predictions, token_losses
from fairseq_peft.data.answers import AnswerDataset, Layout
from fairseq_peft.data.buckets import packed_batches
from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import last_batch
from fairseq_peft.layers import hf_attention
from fairseq_peft.models import hf_models, hf_slots
from fairseq_peft.tasks import answers

LAYOUT = Layout(causal=True, pad=hf_families.PAD, eos=1, start=None)
#: Of uneven lengths, one without an answer, all as a batch; no row is longer than 12.
ROWS = [
    ([5, 6, 7, 12, 13, 14, 15, 9], [8, 4, 3]),
    ([5], [9]),
    ([11, 12, 13, 14, 15, 16, 17], []),
    ([30, 31, 32], [20, 21, 22, 23, 24]),
]
LORA = ("lora", {"peft_targets": "all-linear"})
CASES = [
    *((kind, *LORA) for kind in ("gpt2", "gpt2-split", "bloom", "opt", "llama-grouped", *WINDOWED)),
    ("gpt2", "full", {}),
    ("bloom", "adapter", {"adapter_placement": "both"}),
    *((kind, "prompt", {"prompt_num_tokens": 3}) for kind in ("gpt2", "bloom", "llama")),
    ("gpt2", "prompt", {"prompt_num_tokens": 3, "prompt_placement": "after_bos"}),
    ("bloom", "prompt", {"prompt_num_tokens": 2, "prompt_mlp": 5}),
    *((kind, "prefix", {"prefix_num_tokens": 3}) for kind in ("gpt2", "bloom", "llama")),
    ("gpt2", "prefix", {"prefix_num_tokens": 3, "prefix_positions": "reserved"}),
]


@pytest.fixture
def build(tmp_path):
    """``build("gpt2", "lora", {})``: a model whose method is away from its start."""

    def make(name, peft, given):
        kind = Kind(name, tmp_path)
        model = kind.build(peft, **given)
        model.load_state_dict({**model.state_dict(), **kind.base()}, strict=False)
        return moved(model, 3)

    return make


def losses_and_gradients(model, batch):
    model.zero_grad()
    loss = token_losses(*predictions(model, batch), LAYOUT.pad).sum()
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def logits_of_answers(model, batch):
    logits, target = predictions(model, batch)
    return logits[target.ne(LAYOUT.pad)]


def test_rows_stand_one_behind_the_other():
    batch = LAYOUT.packed([([5, 6, 7], [8]), ([5], [9, 10]), ([6, 6], [])])
    inputs = batch["net_input"]
    assert inputs["src_tokens"].tolist() == [[5, 6, 7, 8, 5, 9, 10, 6, 6]]
    assert inputs["packed"] == [4, 3, 2]
    assert inputs["predicted"].tolist() == [2, 3, 4, 5, 6, 8]
    assert batch["target"].tolist() == [[8, 1, 9, 10, 1, 1]]


@pytest.mark.parametrize("kind, peft, given", CASES)
def test_a_packed_batch_is_the_padded_one(build, kind, peft, given):
    """Loss, logits, and the gradient of all that trains."""
    model = build(kind, peft, given)
    wanted, gradients = losses_and_gradients(model, LAYOUT.batch(ROWS))
    found, packed = losses_and_gradients(model, LAYOUT.packed(ROWS))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert any(gradient.abs().max() > 1e-2 for gradient in gradients.values())
    for name, gradient in gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        assert (gradient - packed[name]).abs().max() < 1e-5 * scale, name
    both = [logits_of_answers(model, make(ROWS)) for make in (LAYOUT.batch, LAYOUT.packed)]
    assert (both[0] - both[1]).abs().max() < 1e-5 * max(1.0, both[0].abs().max().item())


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "llama-grouped"])
def test_rows_that_are_not_apart_see_each_other(build, monkeypatch, kind):
    """The control: one row in place of several for the attention, the positions as they are."""
    model = build(kind, *LORA)
    wanted = logits_of_answers(model, LAYOUT.packed(ROWS))
    monkeypatch.setattr(hf_models, "apart", lambda lengths: hf_attention.apart([sum(lengths)]))
    found = logits_of_answers(model, LAYOUT.packed(ROWS))
    first = len(ROWS[0][1]) + 1
    assert torch.allclose(found[:first], wanted[:first], atol=1e-5)
    assert (found - wanted)[first:].abs().amax(1).min() > 1e-2


def test_a_row_has_the_positions_that_it_would_have_alone(build):
    """More tokens than the model has positions, and the same row again and again."""
    model = build("gpt2", *LORA)
    rows = [ROWS[0]] * 6
    assert sum(len(prompt) + len(answer) for prompt, answer in rows) > GPT2["n_positions"]
    found = logits_of_answers(model, LAYOUT.packed(rows)).unflatten(0, (6, -1))
    assert (found - found[:1]).abs().max() < 1e-5
    with pytest.raises(InputError, match="the model has 32 positions"):
        model(torch.zeros(1, 33, dtype=torch.long), packed=[33], predicted=torch.tensor([0]))


def test_what_is_dropped_is_dropped_in_packed_rows_too(build):
    """Attention has a way of its own where it drops; a rate near zero drops nothing here."""
    model = build("gpt2", *LORA)
    model.train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    for attention in hf_slots.attentions(model):
        attention.attn_dropout.p = 1e-9
    both = [logits_of_answers(model, make(ROWS)) for make in (LAYOUT.batch, LAYOUT.packed)]
    assert (both[0] - both[1]).abs().max() < 1e-5 * max(1.0, both[0].abs().max().item())


def test_rows_are_apart_only_inside(build):
    """After an error, too."""
    model = build("gpt2", *LORA)
    before = logits_of_answers(model, LAYOUT.batch(ROWS))
    with contextlib.suppress(RuntimeError), hf_attention.apart([3, 4]):
        raise RuntimeError
    assert torch.equal(before, logits_of_answers(model, LAYOUT.batch(ROWS)))


def test_an_attention_that_would_not_know_rows_is_refused(build, monkeypatch):
    model = build("gpt2", *LORA)
    hf_slots.check_attention(model, "packed rows")
    attention = type(hf_slots.attentions(model)[0])
    monkeypatch.setattr(attention, "forward", lambda self, x: x)
    with pytest.raises(InputError, match="would not read packed rows"):
        hf_slots.check_attention(model, "packed rows")


# Batches


def test_each_row_is_once_in_an_epoch_and_within_the_limits():
    sizes = np.random.default_rng(1).integers(2, 30, 101)
    for rows, tokens in ((8, None), (None, 64), (5, 64), (1, None)):
        batches = packed_batches(sizes, rows, tokens, np.random.default_rng(2))
        assert sorted(sum(batches, [])) == list(range(101))
        assert all(len(batch) <= (rows or 101) for batch in batches)
        assert all(sizes[batch].sum() <= (tokens or 10**9) for batch in batches)
        if not tokens:
            assert {len(batch) for batch in batches[:-1]} <= {rows}
        else:  # full: the next row had no room
            follows = zip(batches, batches[1:])
            full = [
                len(batch) == rows or sizes[batch].sum() + sizes[after[0]] > tokens
                for batch, after in follows
            ]
            assert all(full)
    assert packed_batches([5, 90], None, 64, np.random.default_rng(2)) in ([[0], [1]], [[1], [0]])


@pytest.fixture
def made(tmp_path):
    """``made()``: the task causal_lm with --pack, on rows of its own."""
    base = write_base(tmp_path / "base", GPT2)
    data = write_rows(tmp_path / "rows", ("prompt", "answer"), train=41, valid=5)

    def make(name="causal_lm", **given):
        config = answers.CausalLMTask if name == "causal_lm" else answers.TextToTextTask
        cfg = answers.AnswersConfig(
            **{"data": str(data), "train_subset": "train", "valid_subset": "valid", "pack": True},
            **{"max_epoch": 2, "max_update": 0, "update_freq": [1]},
            **{"max_answer_tokens": 8, "skip_remainder_batch": False, **given},
        )
        cfg._name = name
        task = config.setup_task(cfg)
        args = argparse.Namespace(
            _name="hf_causal_lm", hf_model=str(base), peft="lora", precision="fp32"
        )
        task.build_model(args)
        return task

    return make


def epoch_of(task, epoch, seed=1, state=None, **limits):
    """The rows of each batch of an epoch, from where ``state`` says."""
    dataset = task.load_dataset("train")
    limits = limits or {"max_sentences": 8}
    with last_batch.training():
        batches = task.get_batch_iterator(dataset, seed=seed, epoch=epoch, **limits)
    if state:
        batches.load_state_dict(state)
    iterator = batches.next_epoch_itr()
    return batches, [batch["id"].tolist() for batch in iterator]


def test_packing_is_of_seed_and_epoch_and_a_run_that_goes_on_has_the_rest(made):
    task = made()
    _, first = epoch_of(task, 1)
    _, second = epoch_of(task, 2)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(41))
    assert [len(batch) for batch in second].count(8) == 5 and task.planned_updates == 12
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert epoch_of(task, 2)[1] == epoch_of(made(), 2)[1] == second
    assert epoch_of(task, 2, seed=7)[1] != second
    for limits in ({"max_sentences": 8}, {"max_tokens": 60}):
        whole, batches = epoch_of(task, 2, **limits)
        iterator = task.get_batch_iterator(task.load_dataset("train"), seed=1, epoch=2, **limits)
        begun = iterator.next_epoch_itr()
        seen = [next(begun)["id"].tolist() for _ in range(2)]
        rest = epoch_of(made(), 2, state=iterator.state_dict(), **limits)[1]
        assert seen + rest == batches


def test_validation_is_not_packed(made):
    task = made()
    train, valid = task.load_dataset("train"), task.load_dataset("valid")
    packed = train.collater([train[0], train[1]])
    assert len(packed["net_input"]["packed"]) == packed["nsentences"] == 2
    assert packed["ntokens"] == packed["target"].numel()
    assert "packed" not in valid.collater([valid[0], valid[1]])["net_input"]


def test_a_row_that_is_too_long_is_cut_as_ever():
    rows = [([5] * 9, [8, 8]), ([6], [9])]
    both = [AnswerDataset(rows, LAYOUT, 5, 4, "train", pack=pack) for pack in (False, True)]
    assert both[0].rows == both[1].rows and both[1].num_cut == 1
    assert both[1].collater([both[1][0], both[1][1]])["net_input"]["packed"] == [7, 2]


def test_packing_is_refused_where_there_is_a_source(made):
    with pytest.raises(InputError, match="--pack would be ignored by --task text_to_text"):
        made("text_to_text")


def run_of(fairseq, base, data, out, *more):
    done = fairseq(
        *("train", data, "--user-dir", PACKAGE, "--task", "causal_lm", "--criterion", "answers"),
        *("--arch", "hf_causal_lm", "--hf-model", base, "--peft", "lora", "--precision", "fp32"),
        *("--optimizer", "adam", "--lr", 0.01, "--batch-size", 4, "--update-freq", 2, "--cpu"),
        *("--num-workers", 0, "--save-interval-updates", 5, "--keep-interval-updates", 1),
        *("--max-answer-tokens", 8, "--log-format", "simple", "--save-dir", out, *more),
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out / "checkpoint_last.pt", weights_only=False)


def test_a_run_that_stops_in_the_middle_of_an_epoch_is_the_same(fairseq, tmp_path):
    """41 rows are 11 batches, 6 updates an epoch; one run stops at the third of the second."""
    base = write_base(tmp_path / "base", GPT2)
    data = write_rows(tmp_path / "rows", ("prompt", "answer"), train=41, valid=5)
    given = (fairseq, base, data)
    run_of(*given, tmp_path / "halves", "--pack", "--max-update", 9)
    halves, whole = (
        run_of(*given, tmp_path / name, "--pack", "--max-update", 12)
        for name in ("halves", "whole")
    )
    assert halves["model"].keys() == whole["model"].keys()
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, halves["model"][name]), name
