"""The rooms of the package: which may import which, and which do, read from the source.

    python tests/support/rooms.py     draws the picture of docs/design.md anew

Reads with ``ast``; nothing is imported. A new room goes into ``PARTS``, and the picture is drawn
anew.
"""

import ast
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fairseq_peft"
HEAVY = {
    "torch", "fairseq", "fairseq_cli", "numpy", "scipy", "sklearn", "matplotlib", "tensorboard",
    "sentencepiece", "tokenizers", "transformers", "peft", "adapters", "safetensors", "hydra",
    "omegaconf", "fastapi", "fastapi_offline", "starlette", "uvicorn", "submitit",
    "jinja2", "vl_convert",
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
    "seeds": part(0),
    "scores": part(0, inside="numpy"),
    "digests": part(0, TORCH),
    "folders": part(1),
    "keys": part(1),
    "compiling": part(1, inside="torch"),
    "precision": part(1, inside="torch"),
    # Rooms, from the lowest.
    "layers": part(1, FAIRSEQ),
    "fairseq_fixes": part(1, FAIRSEQ, "hydra"),
    "architectures": part(1),
    "runs": part(2, inside="torch numpy"),
    # Neither torch nor fairseq, even in functions.
    "text": part(1, "numpy scipy", "sentencepiece tokenizers"),
    "report": part(3, "numpy scipy", "matplotlib sklearn tensorboard jinja2 vl_convert"),
    "injection": part(2, TORCH),
    "adapters": part(2, TORCH + " safetensors"),
    "methods": part(4, TORCH),
    "methods.shared": part(3, TORCH),
    "sharing": part(5, TORCH),
    "data": part(5, FAIRSEQ),
    "criterions": part(5, FAIRSEQ),
    "optim": part(5, FAIRSEQ),
    "models": part(6, FAIRSEQ, "transformers"),  # its models as fairseq's
    "checkpoints": part(7, FAIRSEQ),
    "checkpoints.start": part(0.5, "fairseq"),  # looked at before anything is made
    "checkpoints.file": part(1, TORCH),  # models read the sizes of their base
    "tasks": part(8, FAIRSEQ),
    "combining": part(9, FAIRSEQ),
    "hf": part(9, TORCH + " safetensors", "transformers peft fairseq"),
    "serving": part(10, FAIRSEQ, "sklearn fastapi fastapi_offline starlette uvicorn"),
    "sweeps": part(10, FAIRSEQ + " fairseq_cli", "submitit"),
    # What is met first. Anything, but only in functions, so that `fairseq-peft --help` stays quick.
    "plugin": part(11, FAIRSEQ),
    "train": part(11, inside="fairseq fairseq_cli"),
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


def room_of(name):
    """The entry of PARTS that the module ``name`` belongs to, by its key; None if there is none."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        if ".".join(words[:length]) in PARTS:
            return ".".join(words[:length])
    return None


def place(name):
    """The entry of PARTS for a module, or None."""
    return PARTS.get(room_of(name))


def arrows():
    """Room -> the rooms that it imports, in functions or on top."""
    found = defaultdict(set)
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for imported, _, _ in imports(tree, name, path.name == "__init__.py"):
            other = module_of(imported) if imported.split(".")[0] == "fairseq_peft" else None
            if other and room_of(other) != room_of(name):
                found[room_of(name)].add(room_of(other))
    return found


def sentence(room):
    """The first sentence of what the room says of itself."""
    text = ast.get_docstring(ast.parse(FILES[room].read_text(encoding="utf-8")))
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def picture():
    """All rooms, the highest first; below each, what it imports."""
    drawn = arrows()
    for level in sorted({part.layer for part in PARTS.values()}, reverse=True):
        rooms = sorted(name for name, part in PARTS.items() if part.layer == level)
        for room in rooms:
            mark = "/" if FILES[room].name == "__init__.py" else ".py"
            yield f"{level:>2}  {room.replace('.', '/') + mark:<17} {sentence(room)}"
            below = sorted(drawn[room], key=lambda name: (-PARTS[name].layer, name))
            for line in textwrap.wrap(" ".join(below), 72):
                yield f"    {'':<17} -> {line}"


def draw(page):
    """``page`` with the picture of today."""
    head, rest = page.split("<!-- rooms -->\n```text\n")
    return "".join(
        [head, "<!-- rooms -->\n```text\n", "\n".join(picture()), rest[rest.index("\n```\n") :]]
    )


if __name__ == "__main__":
    design = ROOT / "docs" / "design.md"
    design.write_text(draw(design.read_text(encoding="utf-8")), encoding="utf-8")
