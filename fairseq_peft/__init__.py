"""LoRA, adapters and soft prompts for fairseq: the plugin behind ``--user-dir fairseq_peft``.

Under fairseq (already imported, or imported later) the package registers its models, tasks,
criterions and optimizers. Without fairseq it imports nothing heavy.
"""

import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"


class _RegisterAfterFairseq(importlib.abc.MetaPathFinder):
    """Registers the plugin as soon as somebody imports fairseq.

    fairseq skips a ``--user-dir`` package that is in ``sys.modules`` already, so a plugin that was
    imported first has to register by itself. Whoever only looks for fairseq's spec changes nothing.
    """

    looking = False

    def find_spec(self, name, path=None, target=None):
        if name != "fairseq" or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            run_fairseq = spec.loader.exec_module

            def exec_module(module):
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                from fairseq_peft.fairseq_fixes import imports_later

                with imports_later.installed():
                    try:
                        run_fairseq(module)
                    except Exception as error:
                        from fairseq_peft.fairseq_fixes.compat import broken

                        raise broken(error) from error
                    importlib.import_module(f"{__name__}.plugin")

            spec.loader.exec_module = exec_module
        return spec


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that go by their old names, too: documented before the package had rooms."""

    names = {f"{__name__}.combine": f"{__name__}.combining.combine"}

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in self.names else None

    def exec_module(self, module):
        sys.modules[module.__name__] = importlib.import_module(self.names[module.__name__])


def __getattr__(name):
    """``Classifier`` and ``Generator`` are there when they are asked for, and torch is imported
    only then."""
    if name == "Classifier":
        return importlib.import_module(f"{__name__}.serving.predict").Classifier
    if name == "Generator":
        return importlib.import_module(f"{__name__}.serving.generate").Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.meta_path.append(_Moved())
if "fairseq" in sys.modules:
    with importlib.import_module(f"{__name__}.fairseq_fixes.imports_later").installed():
        importlib.import_module(f"{__name__}.plugin")
else:
    sys.meta_path.insert(0, _RegisterAfterFairseq())
