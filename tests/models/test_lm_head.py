"""The LM head with ``--precision bf16``; in fp32 it is stock fairseq's, bit for bit."""

from __future__ import annotations

import json
import math
import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq.models.roberta import RobertaLMHead  # noqa: E402
from helpers import PACKAGE, TINY_FLAGS, TOLERANCE  # noqa: E402

from fairseq_peft.models.encoder import LMHead  # noqa: E402


def pair(half_dtype, dim=512, num_rows=500):
    """fairseq's own head and ours, with the same tensors; features (3, 20, C)."""
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(num_rows, dim) / dim**0.5)
    stock = RobertaLMHead(dim, num_rows, "gelu", table)
    ours = LMHead(dim, num_rows, "gelu", table, half_dtype)
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter is not table:
                parameter.add_(0.2 * torch.randn_like(parameter))
    ours.load_state_dict(stock.state_dict())
    return stock, ours, torch.randn(3, 20, dim)


def test_in_fp32_it_is_stocks_to_the_last_bit():
    stock, ours, features = pair(half_dtype=None)
    masked = torch.rand(3, 20) < 0.4
    for masks in (None, masked):
        with torch.no_grad():
            expected, found = stock(features, masks), ours(features, masks)
        assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_in_bf16_it_is_close():
    """Within the tolerance of bf16, scaled by the largest logit: 8 bits of mantissa."""
    stock, ours, features = pair(half_dtype=torch.bfloat16)
    with torch.no_grad():
        expected, found = stock(features), ours(features)
    assert found.dtype == torch.bfloat16
    difference = (found - expected).abs().max() / expected.abs().max()
    assert 0 < difference < TOLERANCE["bf16"]
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())


def test_every_tensor_gets_its_gradient_in_fp32(build, batch):
    """The embedding's too, which is the head's weight; with nearly the gradient of fp32."""
    found = {}
    for precision in ("fp32", "bf16"):
        model = build("full", head=False, precision=precision)
        masked = batch.ge(4)
        logits, _ = model(batch, masked_tokens=masked)
        assert logits.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
        loss = torch.nn.functional.cross_entropy(logits.float(), batch[masked], reduction="mean")
        loss.backward()
        found[precision] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[precision]["loss"] = loss.detach()
    assert found["fp32"].keys() == found["bf16"].keys()
    for name, exact in found["fp32"].items():
        rounded = found["bf16"][name]
        assert rounded.dtype == torch.float32 and rounded.isfinite().all(), name
        assert (rounded - exact).abs().max() < TOLERANCE["bf16"], name
    for part in ("sentence_encoder.embed_tokens.weight", "lm_head.dense.weight", "lm_head.bias"):
        exact, rounded = (found[name][f"encoder.{part}"] for name in ("fp32", "bf16"))
        assert exact.abs().max() > 1e-3
        assert 0 < (rounded - exact).norm() < 0.1 * exact.norm(), part


def test_an_update_of_the_embedding_reaches_it(build, batch):
    """LoRA beside the tied embedding: nearly the logits of fp32."""
    logits = {}
    for precision in ("fp32", "bf16"):
        model = build("lora", head=False, precision=precision, peft_targets="embed_tokens")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in model.added:
                    draw = torch.Generator().manual_seed(3)
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
            logits[precision] = model(batch)[0].float()
            assert model.encoder.lm_head.output_update is not None
    scale = logits["fp32"].abs().max()
    assert 0 < (logits["fp32"] - logits["bf16"]).abs().max() < TOLERANCE["bf16"] * scale


@pytest.mark.end_to_end
def test_masked_lm_trains_and_validates(fairseq, data_folder, tmp_path):
    """Nearly fp32's losses; fairseq-validate finds those of the run."""
    losses = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        done = fairseq(
            *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
            *("--criterion", "masked_lm", "--arch", "roberta_small", *TINY_FLAGS),
            *("--tokens-per-sample", 40, "--sample-break-mode", "none", "--batch-size", 8),
            *("--optimizer", "peft_adamw", "--lr", 1e-2, "--max-update", 10, "--num-workers", 0),
            *("--save-dir", folder, "--no-epoch-checkpoints", "--log-format", "json", "--cpu"),
            *("--precision", precision),
        )
        assert done.returncode == 0, done.stderr
        *_, line = re.findall(r"\| valid \| (\{.*\})", done.stdout + done.stderr)
        losses[precision] = float(json.loads(line)["valid_loss"])
    assert all(0 < loss < 2 * math.log2(35) for loss in losses.values())
    assert 0 < abs(losses["fp32"] - losses["bf16"]) < TOLERANCE["bf16"]
    done = fairseq(
        *("validate", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--path", tmp_path / "bf16" / "checkpoint_last.pt", "--valid-subset", "valid"),
        *("--tokens-per-sample", 40, "--sample-break-mode", "none", "--batch-size", 8),
        *("--criterion", "masked_lm", "--cpu", "--num-workers", 0, "--log-format", "json"),
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r'"valid_loss": "([\d.]+)"', done.stdout + done.stderr)
    assert abs(float(found) - losses["bf16"]) < 0.01
