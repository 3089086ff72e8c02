"""scikit-learn and scipy for fairseq's own metrics: imported when the first one is computed.

Importing fairseq imports both for the metrics of ``MODULES``, which costs a quarter of the time.
Where the plugin comes first (``fairseq-peft``, ``fairseq_peft.train``, ``Classifier``), what these
files import from the two is a ``Later``: called, it is the function itself. No other module sees
one. Under ``fairseq-train`` fairseq is there before the plugin, and imports them.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator

#: fairseq's files that import what is heavy on top, and call it in their metrics only.
MODULES = ("fairseq.criterions.sentence_prediction", "fairseq.tasks.audio_classification")
#: What is imported later.
PACKAGES = ("sklearn", "scipy")


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
    """Runs each of ``MODULES`` with an ``import`` of its own."""

    def find_spec(self, name, path=None, target=None):
        if name not in MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                # An import statement asks the __builtins__ of the module that it stands in.
                module.__builtins__ = {**vars(builtins), "__import__": _import}
                run(module)

            spec.loader.exec_module = exec_module
        return spec


def _import(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and fromlist and name.partition(".")[0] in PACKAGES:
        return Later(name)
    return builtins.__import__(name, globals, locals, fromlist, level)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """While fairseq is imported. Changes nothing where a package is missing: fairseq says so."""
    finder = _Finder()
    if all(importlib.util.find_spec(package) for package in PACKAGES):
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
