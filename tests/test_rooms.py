"""The rooms of docs/design.md: a file imports only from a lower one, and heavy packages where due.

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

# A room, or a file of the ground: the longest name that fits decides. Rooms of one number do not
# import each other.
PARTS = {
    # The ground.
    "errors": part(0),
    "files": part(0),
    "folders": part(0),
    "seeds": part(0),
    "scores": part(0),
    "digests": part(0, TORCH),
    "keys": part(1),
    # Rooms, from the lowest.
    "layers": part(1, FAIRSEQ),
    "runs": part(1, inside="torch numpy"),
    "fairseq_fixes": part(1, FAIRSEQ),
    "architectures": part(1),
    "text": part(1, "numpy scipy", "sentencepiece"),  # neither torch nor fairseq, even in functions
    "report": part(2, "numpy scipy", "matplotlib sklearn tensorboard"),  # the same
    "injection": part(2, TORCH),
    "adapters": part(2, TORCH + " safetensors"),
    "methods": part(4, TORCH),
    "methods.shared": part(3, TORCH),
    "data": part(5, FAIRSEQ),
    "criterions": part(5, FAIRSEQ),
    "optim": part(5, FAIRSEQ),
    "models": part(6, FAIRSEQ),
    "checkpoints": part(7, FAIRSEQ),
    "combining": part(7, TORCH),
    "tasks": part(8, FAIRSEQ),
    "hf": part(9, TORCH + " safetensors", "transformers peft fairseq"),
    "serving": part(10, FAIRSEQ, "sklearn"),
    "sweeps": part(10, FAIRSEQ + " fairseq_cli"),
    # What is met first. Anything, but only in functions, so that `fairseq-peft --help` stays quick.
    "plugin": part(11, FAIRSEQ),
    "doctor": part(11, inside=" ".join(HEAVY)),
    "commands": part(12, inside=" ".join(HEAVY)),
    "cli": part(13, inside=" ".join(HEAVY)),
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
        if place(other) and place(other).layer >= mine.layer and place(other) is not mine:
            found.append(f"{where}, which is not in a lower layer")
        # One method must not lean on another: they are read, and removed, one by one.
        methods = place(name) is place(other) is PARTS["methods"]
        if methods and name != "methods" and other not in ("methods", "methods.base"):
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
        ("injection.surgery", "def f():\n    from fairseq import utils"),
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
        ("methods.lora", "import torch\nfrom fairseq_peft import __version__, injection"),
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
