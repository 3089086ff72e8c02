"""The rooms of docs/design.md: a file imports only from a lower one, heavy packages where due."""

import ast

import pytest
from helpers import ROOT
from rooms import FILES, HEAVY, PARTS, draw, imports, module_of, place


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


def test_every_room_has_files_and_says_what_belongs_there():
    for name in PARTS:
        assert name in FILES, f"{name} is in PARTS and not there"
        assert ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))), name


def test_the_picture_of_design_md_is_what_the_imports_say():
    """``python tests/support/rooms.py`` draws it anew."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert page == draw(page)
