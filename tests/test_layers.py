"""The layers of docs/design.md: a file imports only from a lower one, and heavy packages where due.

Reads the source with ``ast``; nothing is imported. A new file goes into ``PARTS`` and the document.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fairseq_peft"
HEAVY = {
    "torch", "fairseq", "fairseq_cli", "numpy", "scipy", "sklearn", "matplotlib", "tensorboard",
    "sentencepiece", "transformers", "peft", "adapters", "safetensors", "hydra", "omegaconf",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Where a file stands, and the heavy packages it may import on top and inside functions."""

    layer: float
    top: frozenset = frozenset()
    inside: frozenset = frozenset()


def part(layer, top="", inside=""):
    return Part(layer, frozenset(top.split()), frozenset((top + " " + inside).split()))


TORCH = "torch numpy"
FAIRSEQ = "torch numpy fairseq omegaconf"

# The longest name that fits decides: `methods.base` before `methods`.
PARTS = {
    "errors": part(0),
    "files": part(0),
    "memory": part(0),
    "folders": part(0),
    "architectures": part(0.05),
    "targets": part(0.1),
    "seeds": part(0.1),
    "keys": part(0.1),
    "scores": part(0.1),
    "compat": part(0.1, inside="fairseq"),
    "digests": part(0.5, TORCH),
    "methods.base": part(0.5, TORCH),
    "surgery": part(1, TORCH),
    "reparametrise": part(1, TORCH),
    "dropout": part(0.9, TORCH),
    "attention": part(1, FAIRSEQ),
    "rank_budget": part(1, TORCH),
    "bottleneck": part(1.1, TORCH),
    "low_rank": part(1.5, TORCH),
    "arithmetic": part(1, TORCH),
    "frozen": part(1.1, TORCH),
    "methods": part(2, TORCH),
    "run_log": part(3, inside="torch numpy"),
    "artifact_base": part(2.9, TORCH),
    "artifact_seal": part(2.9),
    "artifact": part(3, TORCH + " safetensors"),
    "checkpoint_file": part(3, TORCH),
    "slim": part(3.5, TORCH),
    "data": part(4, FAIRSEQ),
    "criterions": part(4, FAIRSEQ),
    "optim": part(4, FAIRSEQ),
    "models": part(4, FAIRSEQ),
    "tasks": part(4, FAIRSEQ),
    "hf": part(5.85, TORCH + " safetensors", "transformers peft fairseq"),
    "switches": part(4.9, TORCH),
    "shared_base": part(5, TORCH),
    "combine_terms": part(4.9, TORCH),
    "combine": part(5, TORCH),
    "checkpoints": part(5.8, inside=FAIRSEQ),
    "served": part(5.85, FAIRSEQ),
    "predict": part(5.87, FAIRSEQ),
    "probe": part(5.87, FAIRSEQ, "sklearn"),
    "members.rows": part(4.5, TORCH),
    "members.forward": part(4.5, FAIRSEQ),
    "members": part(5.8, FAIRSEQ + " fairseq_cli"),
    "help": part(5, FAIRSEQ),
    "saving": part(5, FAIRSEQ),
    "whole_words": part(5, FAIRSEQ),
    "plugin": part(5.5, FAIRSEQ),
    # Beside the layers: neither torch nor fairseq, not even in a function.
    "text": part(0.6, "numpy scipy", "sentencepiece"),
    "report": part(0.7, "numpy scipy", "matplotlib sklearn tensorboard"),
    # On top: anything, but only in functions, so that `fairseq-peft --help` stays quick.
    "doctor": part(5.9, inside=" ".join(HEAVY)),
    "worker": part(5.9),
    "commands": part(6, inside=" ".join(HEAVY)),
    "cli": part(6.5, inside=" ".join(HEAVY)),
}


def files():
    """Module name without the package -> path. The package's own __init__ is not in a layer."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(names[:-1] if names[-1] == "__init__" else names)
        if name:
            found[name] = path
    return found


FILES = files()


def place(name):
    """The entry of PARTS for a module, or None."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        if ".".join(words[:length]) in PARTS:
            return PARTS[".".join(words[:length])]
    return None


def imports(tree, name, is_package=False):
    """(imported module with its package, line, is it inside a function?) of every import."""
    found = []

    def visit(node, inside):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["fairseq_peft", *name.split(".")]
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            # `from package import x`: x may be a module of the package.
            found.extend((f"{base}.{alias.name}", node.lineno, inside) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, False)
    return found


def module_of(imported):
    """``fairseq_peft.a.b.name`` -> the file ``a.b`` it comes from; None for the package itself."""
    words = imported.split(".")[1:]
    while words and ".".join(words) not in FILES:
        words.pop()
    return ".".join(words) or None


def broken_rules(name, source, is_package=False):
    """What a file imports and should not: one sentence each."""
    mine = place(name)
    if mine is None:
        return [f"{name}: in no layer; add it to docs/design.md and to PARTS of this test"]
    found = []
    for imported, line, inside in imports(ast.parse(source), name, is_package):
        where = f"fairseq_peft/{name.replace('.', '/')}, line {line}: imports {imported}"
        package = imported.split(".")[0]
        if package in HEAVY and package not in (mine.inside if inside else mine.top):
            found.append(f"{where}, which is not for {'this layer' if inside else 'its top level'}")
        if package != "fairseq_peft":
            continue
        other = module_of(imported)
        if other is None:  # __version__
            continue
        same_folder = other.split(".")[0] == name.split(".")[0]
        same_plugin = mine.layer == 4 and place(other) and place(other).layer == 4
        if place(other) and place(other).layer >= mine.layer and not (same_folder or same_plugin):
            found.append(f"{where}, which is not in a lower layer")
        # One method must not lean on another: they are read, and removed, one by one.
        if name.startswith("methods.") and other.startswith("methods.") and other != "methods.base":
            found.append(f"{where}: a method imports another")
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    path = FILES[name]
    source = path.read_text(encoding="utf-8")
    assert broken_rules(name, source, path.name == "__init__.py") == []


def test_no_import_cycle():
    graph = {}
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = {
            module_of(imported)
            for imported, _, inside in imports(tree, name, path.name == "__init__.py")
            if imported.startswith("fairseq_peft.") and not inside
        } - {None, name}
        if path.name == "__init__.py":  # a package collects its own modules
            graph[name] = {other for other in graph[name] if not other.startswith(name + ".")}
    done, trail = set(), []

    def walk(name):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        trail.append(name)
        for other in sorted(graph.get(name, ())):
            walk(other)
        trail.pop()
        done.add(name)

    for name in graph:
        walk(name)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("architectures", "import torch"),
        ("methods.lora", "from fairseq_peft.models import roberta"),
        ("methods.lora", "from fairseq_peft.methods import adapter"),
        ("methods.lora", "from . import adapter"),
        ("methods.lora", "import fairseq.utils"),
        ("surgery", "def f():\n    from fairseq import utils"),
        ("report.tables", "def f():\n    import torch"),
        ("report.tables", "import matplotlib.pyplot"),
        ("commands.report", "import numpy"),
        ("models.roberta", "from fairseq_peft.commands import report"),
        ("brand_new", ""),
    ],
)
def test_this_test_sees_a_broken_rule(name, source):
    assert len(broken_rules(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("methods.lora", "import torch\nfrom fairseq_peft import __version__, surgery"),
        ("tasks.sentence_classification", "from fairseq_peft.models.roberta import HEADS"),
        (
            "commands.report",
            "def run():\n    import torch, fairseq\n    import fairseq_peft.report",
        ),
        ("methods.lora", "if TYPE_CHECKING:\n    import fairseq"),
    ],
)
def test_this_test_lets_the_rest_through(name, source):
    assert broken_rules(name, source) == []
