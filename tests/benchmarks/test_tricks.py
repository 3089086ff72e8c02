"""What makes a step fast changes no result: each trick on and off; what the benchmarks print."""

from __future__ import annotations

import json

import pytest
from helpers import TOLERANCE

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import growth  # noqa: E402
import memory  # noqa: E402
import profile_step  # noqa: E402
import steps  # noqa: E402
import tricks  # noqa: E402

#: "dropout by bytes" differs where there is dropout: tests/layers/test_dropout.py.
#: "batches by length" is another order of the same rows: tests/data.
EXACT = [name for name in steps.OFF if name not in ("kept memory", "batches by length")]


def outcome(method, off, precision="fp32", dropout=0.0):
    """Logits, and gradients and tensors after an update, of one batch with padding."""
    setup = steps.Setup(method=method, precision=precision, dropout=dropout, off=off)
    torch.manual_seed(3)
    with steps.turned_off(off):
        model = steps.build(setup).train()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in model.added:  # away from a start at which an update does nothing
                    parameter.normal_(std=0.05, generator=generator)
        optimizer = steps.optimizer_of(model, off)
        tokens = torch.randint(4, 1000, (4, 19), generator=generator)
        tokens[2, 11:] = 1
        logits, _ = model(tokens, features_only=True, classification_head_name="head")
        steps.step(model, optimizer, tokens, torch.tensor([0, 1, 1, 0]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = {name: p.grad for name, p in trained.items() if p.grad is not None}
    return logits.detach(), grads, {name: p.detach() for name, p in trained.items()}


@pytest.fixture(scope="module")
def on():
    return {method: outcome(method, ()) for method in ("lora", "full")}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_trick_changes_nothing_but_rounding(method, name, on):
    logits, grads, tensors = on[method]
    other_logits, other_grads, other_tensors = outcome(method, (name,))
    assert (logits - other_logits).abs().max() < TOLERANCE["fp32"]
    assert grads.keys() == other_grads.keys()
    for key, gradient in grads.items():
        assert (gradient - other_grads[key]).abs().max() < TOLERANCE["fp32"], key
    # AdamW's first step moves each number by the rate, whichever way: a gradient of rounding alone
    # has no way of its own.
    for key, gradient in grads.items():
        away = (tensors[key] - other_tensors[key]).abs()[gradient.abs() > 1e-5]
        assert not away.numel() or away.max() < 1e-6, key


def test_a_trick_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="is no trick"), steps.turned_off(["magic"]):
        pass


def test_what_is_taken_out_comes_back():
    from fairseq_peft.layers import attention, dropout

    before = attention.attend, dropout.keep_mask
    with steps.turned_off(["own attention", "dropout by bytes"]):
        assert attention.attend is not before[0] and dropout.keep_mask is not before[1]
    assert (attention.attend, dropout.keep_mask) == before


def test_tricks_prints_a_line_for_each(tmp_path, monkeypatch, capsys):
    calls = []

    def run(setup, num_steps, threads):
        calls.append(setup)
        return {"tokens_per_s": 100.0 - 10 * len(setup.off), "peak_bytes": 2e6}

    monkeypatch.setattr(steps, "run", run)
    tricks.main(["--out", str(tmp_path), "--repeats", "2"])
    out = capsys.readouterr().out
    assert len(calls) == 2 * 2 * (len(steps.OFF) + 2)
    assert "| lora | fused AdamW | 90 | 1.11 x | 1.11 - 1.11 | 2 |" in out
    assert len(json.loads((tmp_path / "tricks.json").read_text())["lines"]) == len(calls) // 2


def test_growth_draws_and_lists_every_point(tmp_path, monkeypatch, capsys):
    def run(setup, num_steps, threads):
        speed = 1e6 / setup.length / setup.rank
        return {
            "tokens_per_s": speed,
            "ms_per_step": 1.0,
            "peak_bytes": 1e6 * setup.batch,
            "trainable": 1,
        }

    monkeypatch.setattr(steps, "run", run)
    growth.main(["--out", str(tmp_path), "--axes", "length,rank", "--repeats", "1"])
    points = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert len(points) == 2 * len(growth.AXES["length"]) + len(growth.AXES["rank"])
    assert capsys.readouterr().out.count("\n") == len(points) + 2
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_memory_lists_every_method_with_and_without(tmp_path, monkeypatch, capsys):
    def run(setup, num_steps, threads, warm_up):
        return {
            "peak_bytes": 8e6 / (4 if setup.method == "lora" else 1) / (2 if setup.again else 1)
        }

    monkeypatch.setattr(steps, "run", run)
    memory.main(["--out", str(tmp_path), "--archs", "roberta_base"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0] == "| roberta_base | full | off | 8 | 100 % |"
    assert rows[-1] == "| roberta_base | lora | on | 1 | 12 % |" and len(rows) == 4
    assert len(json.loads((tmp_path / "memory.json").read_text())["points"]) == 4


@pytest.mark.parametrize("again", [False, True])
def test_memory_turns_the_flag_on(again):
    model = steps.build(steps.Setup(again=again))
    assert model.encoder.sentence_encoder.checkpoint_activations is again


def test_the_profile_adds_up(capsys):
    """Kinds of operations with shares that make a hundred, and most of it in known kinds."""
    threads = torch.get_num_threads()
    try:
        profile_step.main(["--length", "16", "--batch-size", "2", "--steps", "2"])
    finally:
        torch.set_num_threads(threads)
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    shares = {kind.strip(): int(share) for kind, share in rows}
    assert abs(sum(shares.values()) - 100) <= len(shares) / 2
    assert shares["products of linear maps"] > 10 and shares["everything else"] < 50


def test_a_point_is_really_timed(tmp_path):
    """One small point of growth.py in its own process."""
    found = steps.run(steps.Setup(length=8, batch=2), 2, 1)
    assert found["tokens_per_s"] > 0 and found["trainable"] == 329218
    assert 1e8 < found["peak_bytes"] < 2e9
