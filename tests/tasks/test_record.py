"""Knobs that change what trained tensors compute, and not their shapes: a start from a checkpoint
has those that it was trained with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq")

from fairseq_peft import methods  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.tasks import record  # noqa: E402


@pytest.mark.parametrize(
    ("peft", "flag", "before", "now"),
    [
        ("lora", "lora_alpha", 16.0, 640.0),
        ("lora", "lora_rslora", False, True),
        ("lora", "lora_alpha_pattern", "", "layers.1.fc1=2"),
        ("adapter", "adapter_scaling", "1.0", "2.0"),
        ("adapter", "adapter_activation", "relu", "gelu"),
        ("adapter", "adapter_style", "sequential", "parallel"),
        ("lora,adapter", "adapter_activation", "relu", "gelu"),
        ("prefix", "prefix_positions", "shared", "reserved"),
    ],
)
def test_what_changes_no_shape_is_compared(peft, flag, before, now):
    model = SimpleNamespace(setting=methods.setting(peft, {flag: now}))
    given = {"peft": peft, flag: before}
    with pytest.raises(InputError, match=f"start.pt was trained with .*{flag.split('_', 1)[1]}"):
        record.check_start_knobs("start.pt", {"cfg": {"model": given}}, model)
    same = SimpleNamespace(setting=methods.setting(peft, {flag: before}))
    record.check_start_knobs("start.pt", {"cfg": {"model": given}}, same)


def test_what_training_alone_reads_may_differ():
    model = SimpleNamespace(setting=methods.setting("lora", {"lora_dropout": 0.5}))
    record.check_start_knobs("start.pt", {"cfg": {"model": {"peft": "lora"}}}, model)
    record.check_start_knobs("base.pt", {"cfg": {"model": {"_name": "roberta_base"}}}, model)
