"""Published models, as they are published: ``scripts/test.sh real`` puts them into one folder.

FAIRSEQ_PEFT_REAL/packages    wheels that carry a model
FAIRSEQ_PEFT_REAL/library     transformers, for what needs it
"""

from __future__ import annotations

import ast
import asyncio
import email
import os
import random
import re
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real():
    """The folder that ``scripts/test.sh real`` has filled."""
    folder = os.environ.get("FAIRSEQ_PEFT_REAL")
    if not folder:
        pytest.skip("FAIRSEQ_PEFT_REAL is not set: scripts/test.sh real sets it up")
    return Path(folder)


@pytest.fixture(scope="session")
def package(real, tmp_path_factory):
    """``package("sapiens")``: the content of a package, unpacked."""

    def unpack(name):
        (wheel,) = (real / "packages").glob(f"{name}-*.whl")
        folder = tmp_path_factory.mktemp(name)
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder)
        return folder / name

    return unpack


@pytest.fixture(scope="session")
def library(real):
    """transformers, importable from here on, behind all that the tests' environment has."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if str(real / "library") not in sys.path:
        sys.path.append(str(real / "library"))
    return real / "library"


@pytest.fixture(scope="session")
def english(tmp_path_factory):
    """{train,valid,test}.{review,label}: what Python's own modules say of themselves. Its class is
    the package that a sentence is from, which the sentence may name by no word of its own."""
    folder = tmp_path_factory.mktemp("english")
    rows = []
    for label, module in (("mail", email), ("loops", asyncio)):
        found = sorted(set(sentences(Path(module.__file__).parent)))
        random.Random(1).shuffle(found)
        rows.append([(text, label) for text in found[:160]])
    mixed = [row for pair in zip(*rows) for row in pair]
    start = 0
    for split, size in (("train", 160), ("valid", 40), ("test", 40)):
        part = mixed[start : start + size]
        start += size
        for name, column in (("review", 0), ("label", 1)):
            text = "".join(f"{row[column]}\n" for row in part)
            (folder / f"{split}.{name}").write_text(text, encoding="utf-8")
    return folder


def sentences(folder):
    """The first sentence of every docstring below ``folder``, of six words or more."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                text = re.split(r"(?<=[.!]) ", text)[0]
                if len(text.split()) >= 6:
                    yield text
