"""``--precision``: what layers are computed in, and what ``auto`` means on this machine.

Weights are fp32 whatever is chosen; bf16 and fp16 are autocast. fp16 is for GPUs without bf16, and
its loss is scaled, so that small gradients are not 0 (``optim/peft_adamw.py``). Where fairseq casts
the weights (``fairseq-generate --fp16``), layers compute in what these are.

Not every processor computes in bf16: with AVX2 only, a step in bf16 takes 41 times as long as one
in fp32. So ``auto`` asks the machine: a product is timed in both, once, and the answer is kept in a
file for all later runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import sys
import time
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of, user_cache, whole

logger = logging.getLogger(__name__)

#: What may be asked for.
NAMES = ("auto", "fp32", "bf16", "fp16")
#: What is told to whoever asks for int8: torch's products in 8 bits kept too few labels.
INT8 = (
    "int8 is for ONNX Runtime, in a file of its own: fairseq-peft export ADAPTER_FOLDER NEW_FOLDER "
    "--base BASE --format onnx --int8 --check-text TEXTS."
)
#: Says what ``auto`` means, without a measurement.
VARIABLE = "FAIRSEQ_PEFT_PRECISION"
#: bf16 has to be so many times as fast as fp32, at least, for ``auto`` to take it.
WORTH_IT = 1.2
#: One of these is there where Linux has a GPU that torch can use: NVIDIA's, AMD's, that of WSL.
DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
#: Products (ROWS, DIM) x (DIM, DIM) are timed, as a small model has them.
ROWS, DIM = 256, 512


def resolve(name: str, cuda: bool | None = None) -> str:
    """What ``--precision name`` means here: fp32, bf16 or fp16.

    Args:
        cuda: whether the model runs on a GPU; None: ``uses_cuda``.

    Raises:
        InputError: there is no such precision.
    """
    if name == "auto":
        chosen = os.environ.get(VARIABLE)
        if chosen is None:
            speed = bf16_speed(uses_cuda() if cuda is None else cuda)
            return "bf16" if speed >= WORTH_IT else "fp32"
        if chosen not in NAMES[1:]:
            raise InputError(
                f"{VARIABLE}={chosen} is unknown: set fp32, bf16 or fp16, or unset it."
            )
        return chosen
    if name not in NAMES:
        raise InputError(f"--precision {name!r} is unknown: give auto, fp32, bf16 or fp16.")
    return name


def half(name: str):
    """The dtype of autocast; None for fp32, which needs none."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)


def around(x, dtype):
    """The dtype of autocast around layers: ``dtype`` of ``half``; None where x, their weight or
    what comes into the first, is in half precision by itself. Then so are the weights of norms,
    which autocast would compute in fp32."""
    import torch

    return None if x.dtype in (torch.float16, torch.bfloat16) else dtype


def autocast(x, dtype):
    """What layers compute in where x is: ``dtype``, as ``around`` has it."""
    import torch

    dtype = around(x, dtype)
    return torch.autocast(x.device.type, dtype, enabled=dtype is not None)


def warn_if_slow(name: str, cuda: bool | None = None) -> None:
    """Warn where bf16 was asked for and is slower here than fp32; ``cuda`` as in ``resolve``."""
    if name != "bf16" or os.environ.get(VARIABLE) is not None:
        return
    speed = bf16_speed(uses_cuda() if cuda is None else cuda)
    if speed < 1:
        logger.warning(
            f"--precision bf16: a product in bf16 takes {1 / speed:.1f} times as long here as one "
            "in fp32, and a model more. --precision auto takes the faster one."
        )


def uses_cuda() -> bool:
    """Whether fairseq puts models on a GPU here: there is one, and the command line has no
    ``--cpu``."""
    if "--cpu" in sys.argv or any(
        re.fullmatch(r"\+*common\.cpu=true", word, re.IGNORECASE) for word in sys.argv
    ):
        return False
    if sys.platform == "linux" and not any(map(os.path.exists, DEVICES)):
        return False  # known without the seconds that torch takes to import
    import torch

    return torch.cuda.is_available()


def bf16_speed(cuda: bool) -> float:
    """How many times as fast as in fp32 products are in bf16; measured once a machine."""
    key, path = machine(cuda), cache_path()
    found = _measured(path)
    speed = found.get(key)
    if isinstance(speed, (int, float)) and speed > 0:
        return speed
    speed = measure(cuda)
    with contextlib.suppress(OSError):  # else it is measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            text = json.dumps({**found, key: speed}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
    return speed


def _measured(path: Path) -> dict:
    """What the file says; {} where there is none, or none to read."""
    try:
        found = json_of(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def measure(cuda: bool) -> float:
    """Time a product in fp32 and in bf16, in turns; the best time of each counts."""
    import torch

    device = torch.device("cuda" if cuda else "cpu")
    seconds = {}
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16) * 3:
            x = torch.ones(ROWS, DIM, device=device, dtype=dtype)
            weight = torch.ones(DIM, DIM, device=device, dtype=dtype)
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(4):
                x = torch.nn.functional.linear(x, weight) / DIM
            if cuda:
                torch.cuda.synchronize()
            seconds[dtype] = min(time.perf_counter() - start, seconds.get(dtype, float("inf")))
    return round(seconds[torch.float32] / seconds[torch.bfloat16], 3)


def machine(cuda: bool) -> str:
    """What a measurement belongs to: the processor and what it can do, and torch's version."""
    from importlib import metadata

    torch_version = metadata.version("torch")
    if cuda:
        import torch

        return f"{torch.cuda.get_device_name()}, torch {torch_version}"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.processor() or platform.machine()}, torch {torch_version}"
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = set(re.findall(r"\b(?:avx\w*|amx_\w+|bf16)\b", text))
    return ", ".join(
        [
            model[1].strip() if model else platform.machine(),
            *sorted(flags),
            f"torch {torch_version}",
        ]
    )


def cache_path() -> Path:
    """The file of measurements: ``precision.json`` in the user's cache folder."""
    return user_cache() / "precision.json"
