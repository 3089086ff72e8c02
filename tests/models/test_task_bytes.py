"""What a task takes is what its adapter folder takes: run.json and ``fairseq-peft params``."""

from __future__ import annotations

import adapter_folders
import pytest
from families import Roberta
from settings import collect, parametrize

from fairseq_peft import methods
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.commands.params import count_method
from fairseq_peft.models import folder

every_setting = parametrize(collect())


def num_bytes(path):
    """Of the tensors in a folder's file."""
    tensors = adapter_folder.read(path).tensors.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@every_setting
@pytest.mark.parametrize("from_scratch", [False, True], ids=["pretrained", "scratch"])
def test_task_bytes_are_those_of_the_folder(dictionary, tmp_path, peft, given, from_scratch):
    model = Roberta(dictionary).build(peft, **given)
    base = None if from_scratch else adapter_folders.base_state(dictionary)
    path = adapter_folders.write(tmp_path / "adapter", model, base)
    assert folder.num_bytes(model, from_scratch) == num_bytes(path)


@every_setting
def test_buffers_are_counted_without_a_model(dictionary, peft, given):
    family = Roberta(dictionary)
    model = family.build(peft, **given)
    state = model.state_dict()
    parameters = dict(model.named_parameters())
    buffers = [state[name] for name in model.added if name not in parameters]
    assert model.setting.buffer_bytes(family.dims) == sum(b.nbytes for b in buffers)


def test_params_counts_the_buffers(dictionary):
    """AdaLoRA: twice the numbers that train, the ranks that are kept, the schedule's length."""
    dims = Roberta(dictionary).dims
    found = count_method("adalora", "tiny", dims, {}, head=10, base=1000)
    trained = methods.get("adalora")().count(dims).total
    assert found["task_bytes"] == 4 * (trained + 10) + 2 * 4 * trained + 4 * (12 + 8)
