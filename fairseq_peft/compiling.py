"""``--compile``: layers run as the graphs that torch.compile makes of them.

``on`` fuses what stands between the products of a layer; ``graphs`` has a GPU record what it is
given, too, and play it back (CUDA graphs, torch's mode reduce-overhead), which spares the time that
giving takes. A model calls each of its layers through a ``Caller``: layers, names of parameters,
hooks, checkpoints and copies are as they are without it, and a run may go on with another choice.

One graph serves all layers of one kind, and all widths: rows and tokens of a batch are symbols in
it. A kind is what the code, the tensors that train, training or evaluation, and the last layer's
``first_only`` make one of. What no graph holds (a graph break) is computed as ever.

On a CPU a compiled layer draws what it draws without: ``layers/dropout.py`` is one opaque step of
the graph, and torch's own dropout, which a method may use, is torch's own. On a GPU a graph draws
its own numbers, so dropout differs there, as it does between two versions of torch.

Of ``graphs`` this much is known from torch's documentation, and nothing was measured, for want of a
GPU. A graph is recorded for each shape of a batch: few where widths are multiples of 8 and rows of
one number. Recorded memory is used anew by the next pass, which ``Caller.begin`` announces; what
leaves the layers is copied first, so features may be kept. Gradients of several batches that are
summed (--update-freq) may lie in such memory: torch then raises an error, and computes nothing
wrong.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re

from fairseq_peft.errors import InputError
from fairseq_peft.files import user_cache

logger = logging.getLogger(__name__)

#: What may be asked for.
NAMES = ("off", "on", "graphs")
#: What makes graphs fast: torch's own.
BACKEND = "inductor"
#: Where torch keeps what it has compiled.
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
#: Kinds of layers, each in training and in evaluation: beyond so many, layers run as they are.
MOST_GRAPHS = 64
#: torch's own settings, while a graph is compiled; a version of torch may lack some.
SETTINGS = {
    # The backward pass is compiled along with the forward one, so that what fails does so in
    # ``Caller``, and not in the middle of a step.
    "force_non_lazy_backward_lowering": True,
    # Backward, autocast is as without a graph: off. Else what a method computes in fp32 within
    # autocast (OFT's rotations) gets its gradient in bf16 (pytorch/pytorch#179804).
    "backward_pass_autocast": "off",
}


def check(name: str) -> None:
    """Raise InputError unless there is ``--compile name``."""
    if name not in NAMES:
        raise InputError(f"--compile {name!r} is unknown: give off, on or graphs.")


def check_device(name: str, cuda: bool) -> None:
    """Raise InputError unless ``--compile name`` can be where the model runs, on a GPU or not."""
    if name == "graphs" and not cuda:
        raise InputError(
            "--compile graphs records CUDA graphs, and the model runs on a CPU. Give --compile on, "
            "or leave it out."
        )


def of(args) -> str:
    """What the flags of a model say; one from before this flag runs its layers as they are."""
    return getattr(args, "compile", None) or "off"


def keep_cache() -> None:
    """Let torch keep its graphs in the user's cache folder, so that the next run finds them, unless
    ``TORCHINDUCTOR_CACHE_DIR`` says where. torch itself, when it is imported to compile, sets the
    variable to a folder of its own in the temporary one, which is nobody's choice."""
    if os.environ.get(VARIABLE) not in (None, _folder_of_torch()):
        return
    folder = user_cache() / "compiled"
    with contextlib.suppress(OSError):  # else they lie where torch puts them
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[VARIABLE] = str(folder)


def _folder_of_torch() -> str | None:
    """Where torch keeps graphs if nobody says where; None where this version of it has no word."""
    try:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    except ImportError:
        return None
    return default_cache_dir()


def remove_broken(reason: str) -> bool:
    """Remove the compiled file that ``reason`` names, if there is one: a process that was killed
    while it compiled has left half of it, and torch takes what is there for whole."""
    folder = os.environ.get(VARIABLE)
    found = re.search(re.escape(folder) + r"[^\s:]+\.so(?=\W)", reason) if folder else None
    try:
        os.remove(found[0])
    except (TypeError, OSError):  # none is named, or it is nobody's to remove
        return False
    logger.info(f"{found[0]} is half a file, which is compiled anew")
    return True


def install(model, name: str) -> None:
    """Let ``model`` call its layers as ``--compile name`` says."""
    caller = Caller(name)
    for module in model.modules():
        if isinstance(vars(module).get("call"), Caller):
            module.call = caller


class Caller:
    """Calls layers: as they are, or as graphs.

    It knows no model, so copies of one share it, and the graphs with it. Where a layer cannot be
    compiled, one warning says why, and from there on all run as they are.

    Attributes:
        name: one of ``NAMES``.
        compiles: whether layers run as graphs.
    """

    def __init__(self, name: str = "off"):
        self.name = name
        self.compiles = name != "off"
        self._compiled = None

    def __deepcopy__(self, memo):
        return self

    def __getstate__(self):
        return {**vars(self), "_compiled": None}

    def __call__(self, layer, x, keep, *rest):
        """``layer(x, keep, *rest)``.

        Args:
            x: (B, T, C).
            keep: (B or 1, 1, Q or 1, K), or None.
            rest: whatever else the layer takes.
        """
        if not self.compiles:
            return layer(x, keep, *rest)
        import torch

        check_device(self.name, x.device.type != "cpu")
        # A layer that fails in the middle begins again with the numbers that it began with.
        numbers = torch.get_rng_state() if x.device.type == "cpu" else None
        while self.compiles:
            try:
                return self._graph()(layer, _dynamic(x, 0, 1), _dynamic(keep, 0, 2, 3), *rest)
            except Exception as error:
                reason = _reason(error)
                if reason is None:
                    raise
            if numbers is not None:
                torch.set_rng_state(numbers)
            if not remove_broken(reason):
                self.compiles = False
                logger.warning(
                    f"--compile {self.name}: nothing is compiled, and layers run as they are, with "
                    f"the same results: {reason}"
                )
        return layer(x, keep, *rest)

    def begin(self) -> None:
        """Before the first layer of a pass: what earlier passes have recorded may be written to."""
        if self.compiles and self.name == "graphs":
            import torch

            torch.compiler.cudagraph_mark_step_begin()

    def end(self, x):
        """What the last layer of a pass has left, in memory of its own."""
        return x.clone() if self.compiles and self.name == "graphs" else x

    def _graph(self):
        if self._compiled is None:
            keep_cache()
            self._compiled = _compile(self.name, BACKEND)
        return self._compiled


class CannotCompile(Exception):
    """torch.compile is not for this machine."""


def _compile(name: str, backend: str):
    """``_call``, compiled."""
    import torch
    from torch._dynamo import lookup_backend
    from torch._functorch import config

    options = {}
    if backend == "inductor" and name == "graphs":
        options = {"config_patches": {"triton.cudagraphs": True}}
    elif backend == "inductor" and not torch.cuda.is_available():
        # torch's own dropout draws as without a graph.
        options = {"config_patches": {"fallback_random": True}}
    settings = {key: value for key, value in SETTINGS.items() if hasattr(config, key)}

    def compiled(graph, inputs):
        with config.patch(settings):
            return lookup_backend(backend)(graph, inputs, **options)

    wanted = {"recompile_limit": MOST_GRAPHS, "isolate_recompiles": True}
    known = inspect.signature(torch.compile).parameters
    wanted = {key: value for key, value in wanted.items() if key in known}
    try:
        return torch.compile(_call, backend=compiled, **wanted)
    except RuntimeError as error:  # not for this Python, or this system
        raise CannotCompile(error) from error


def _call(layer, *inputs):
    """What is compiled: one function for all layers, which share its graphs."""
    return layer(*inputs)


def _dynamic(tensor, *dims):
    """``tensor`` (None: none), whose sizes ``dims`` are symbols in a graph, but for those of 1."""
    if tensor is not None:
        import torch

        dims = [dim for dim in dims if tensor.shape[dim] > 1]
        torch._dynamo.maybe_mark_dynamic(tensor, dims)
    return tensor


def _reason(error: Exception) -> str | None:
    """Why nothing could be compiled, in a line; None where ``error`` is another one."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, (CannotCompile, TorchDynamoException)):
        return None
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "error:" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {told[:300]}"
