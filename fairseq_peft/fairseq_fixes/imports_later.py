"""What importing fairseq does for everybody and hardly any run asks for: done when it is needed.

- scikit-learn, scipy, tensorboard, tabulate: what the files of ``IMPORTED_LATER`` import from them
  is a ``Later``, which imports when it is called. No other module sees one.
- hydra's store of configurations: fairseq hands it a dataclass for each of 120 models, tasks,
  criterions, ...; a run reads a handful. Each becomes a configuration when it is read.
- Python's collector of cycles: it goes through all objects again and again while they grow, and
  finds next to nothing.

Where the plugin comes first (``fairseq-peft``, ``fairseq_peft.train``, ``Classifier``) this holds
for all of fairseq. Under ``fairseq-train`` fairseq is there before the plugin.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator

#: File that imports on top what it calls in one function only -> the packages that wait.
IMPORTED_LATER = {
    "fairseq.criterions.sentence_prediction": ("sklearn", "scipy"),
    "fairseq.tasks.audio_classification": ("sklearn", "scipy"),
    "fairseq.logging.progress_bar": ("torch.utils.tensorboard",),
    "sacrebleu.utils": ("tabulate",),
}
#: What has to be installed for it, where that is not the package itself.
NEEDS = {"torch.utils.tensorboard": "tensorboard"}


class Later:
    """A module, or something in one, that is imported when it is called.

    Args:
        module: its name, such as ``sklearn.metrics``.
        name: what of it: ``f1_score``.
    """

    def __init__(self, module: str, name: str = ""):
        self._module, self._name = module, name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Later(".".join(filter(None, (self._module, self._name))), name)

    def __call__(self, *args, **kwargs):
        return getattr(importlib.import_module(self._module), self._name)(*args, **kwargs)


class _Finder(importlib.abc.MetaPathFinder):
    """Runs each file of ``IMPORTED_LATER`` with an ``import`` of its own.

    A package that is missing is imported at once: the file deals with that, or says so.
    """

    def find_spec(self, name, path=None, target=None):
        if name not in IMPORTED_LATER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        packages = tuple(
            f"{package}."
            for package in IMPORTED_LATER[name]
            if importlib.util.find_spec(NEEDS.get(package, package))
        )
        if spec is not None:
            run = spec.loader.exec_module

            def import_later(name, globals=None, locals=None, fromlist=(), level=0):
                if level == 0 and fromlist and f"{name}.".startswith(packages):
                    return Later(name)
                return builtins.__import__(name, globals, locals, fromlist, level)

            def exec_module(module):
                # An import statement asks the __builtins__ of the module that it stands in.
                module.__builtins__ = {**vars(builtins), "__import__": import_later}
                run(module)

            spec.loader.exec_module = exec_module
        return spec


@contextlib.contextmanager
def _finder() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def _configurations_later() -> Iterator[None]:
    """What is stored in hydra's store in here becomes a configuration when it is first read."""
    from hydra.core import config_store

    Node, structured = config_store.ConfigNode, config_store.OmegaConf.structured

    class NodeLater(Node):
        """Its ``node`` is made of ``given``: a dataclass, or one of its objects."""

        def __init__(self, node, **names):
            super().__init__(node=None, **names)
            del self.node
            self.given = node

        def __getattr__(self, name):
            if name != "node":
                raise AttributeError(name)
            self.node = structured(self.given)
            return self.node

        def __copy__(self):  # hydra reads a copy; what is made stays with the original
            return Node(self.name, self.node, self.group, self.package, self.provider)

    at_once = config_store.ConfigNode, config_store.OmegaConf
    config_store.ConfigNode = NodeLater
    config_store.OmegaConf = types.SimpleNamespace(structured=lambda node: node)
    try:
        yield
    finally:
        config_store.ConfigNode, config_store.OmegaConf = at_once


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """The collector rests in here. What is there then stays there: it does not look at it again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """While fairseq, or the plugin, is imported. Without hydra it changes nothing."""
    if importlib.util.find_spec("hydra") is None:
        yield  # fairseq says what is missing
        return
    with without_collector(), _finder(), _configurations_later():
        yield
