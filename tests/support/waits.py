"""What a GPU would have to be waited for, found without one.

A step runs on torch's ``meta`` device: its tensors have shapes and no numbers, and the code takes
every branch that it takes on a GPU. Whatever needs numbers from the device, or a size that depends
on them, is noted with its place, and answered with 1, or with ones, so that the step goes on. So is
a copy to the device that is not ``non_blocking``.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import torch
from helpers import PACKAGE
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
aten = torch.ops.aten
#: An operator -> the answer that takes the place of the device's; None: its own shape function.
ASKS = {
    aten._local_scalar_dense: lambda tensor: tensor.new_ones((), device="cpu").item(),
    aten.equal: lambda *tensors: True,
    aten.is_nonzero: lambda tensor: True,
    aten.nonzero: lambda tensor: tensor.new_zeros((1, tensor.dim()), dtype=torch.long),
    aten.masked_select: lambda tensor, mask: tensor.new_empty(1),
    aten.bincount: lambda tensor, weights=None, minlength=0: tensor.new_empty(minlength),
    aten._unique2: lambda tensor, *more, **flags: (tensor, tensor, tensor),
    aten._linalg_check_errors: None,
}
#: What makes a tensor on the device of numbers that the process has.
MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


class Waits(TorchDispatchMode):
    """Notes each wait of what runs inside it.

    Attributes:
        found: (file, function, what) -> how often; the file is relative to the package for ours,
            and a whole path for others'.
    """

    def __init__(self):
        super().__init__()
        self.found = Counter()
        self._makers = _Makers(self)

    def __enter__(self):
        self._makers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._makers.__exit__(*error)

    @property
    def ours(self) -> dict:
        """Those in this package: ``file function`` -> how often."""
        found = Counter()
        for (file, function, _), count in self.found.items():
            if not Path(file).is_absolute():
                found[f"{file} {function}"] += count
        return dict(found)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket
        there = any(_there(value) for value in args)
        if name in (aten._to_copy, aten.copy_):
            return self._copied(func, name, args, kwargs)
        if not there:
            return func(*args, **kwargs)
        if name in ASKS:
            self.note(str(name))
            answer = ASKS[name]
            return func(*args, **kwargs) if answer is None else answer(*args, **kwargs)
        if name is aten.index and _has_mask(args[1]):
            self.note(f"{name} with a mask")
            return args[0].new_empty(1)
        # What is put everywhere the same is filled in by a mask, without a wait.
        if name is aten.index_put_ and _has_mask(args[1]) and args[2].numel() != 1:
            self.note(f"{name} with a mask")
            return args[0]
        return func(*args, **kwargs)

    def _copied(self, func, name, args, kwargs):
        if name is aten.copy_:
            target, source, non_blocking = args[0].device, args[1].device, args[2:3] == (True,)
        else:
            source, target = args[0].device, kwargs.get("device") or args[0].device
            non_blocking = kwargs.get("non_blocking")
        if source == DEVICE and target != DEVICE:
            self.note(f"{name} from the device")
            dtype = kwargs.get("dtype") or args[0].dtype
            return args[0] if name is aten.copy_ else torch.ones(args[0].shape, dtype=dtype)
        if target == DEVICE and source != DEVICE and not non_blocking:
            self.note(f"{name} to the device")
        return func(*args, **kwargs)

    def note(self, what: str) -> None:
        frame = sys._getframe(1)
        torch_folder = str(Path(torch.__file__).parent)
        while frame.f_code.co_filename in (__file__, "<string>") or (
            frame.f_code.co_filename.startswith(torch_folder)
        ):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            path = path.relative_to(PACKAGE)
        self.found[path.as_posix(), frame.f_code.co_name, what] += 1


class _Makers(TorchFunctionMode):
    """Notes the tensors that are made on the device of numbers, which is a copy."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in MAKERS and _there(made) and not any(_there(value) for value in args[-1:]):
            self.waits.note(f"{func.__name__} to the device")
        return made


def _there(value) -> bool:
    return torch.is_tensor(value) and value.device == DEVICE


def _has_mask(indices) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def make_like_a_gpu(monkeypatch):
    """Let what torch has for CPUs and GPUs alone run on the device: its fused AdamW, and autocast,
    which is off there."""
    from fairseq_peft.optim import peft_adamw

    monkeypatch.setattr(torch, "autocast", lambda *device, **more: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(peft_adamw, "FUSED", ("cpu", "cuda", DEVICE.type))
    for module in ("torch.optim.optimizer", "torch.optim.adam", "torch.optim.adamw"):
        name = "_get_fused_kernels_supported_devices"
        if hasattr(sys.modules[module], name):
            monkeypatch.setattr(sys.modules[module], name, lambda: ["cpu", "cuda", DEVICE.type])
