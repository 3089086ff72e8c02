"""The wheel, by itself, is the plugin; version, changes and citation agree."""

from __future__ import annotations

import email
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

import fairseq_peft


def test_the_version_stands_in_one_place():
    """CITATION.cff and the newest heading of CHANGELOG.md are of this version."""
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert cited == newest == fairseq_peft.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by the installed setuptools, from a copy of what setup.py reads."""
    pytest.importorskip("setuptools")
    project, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fairseq_peft", project / "fairseq_peft", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "support", project / "tests", ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, project)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.mark.end_to_end
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(content.read(about))
    assert told["Version"] == fairseq_peft.__version__ and "# fairseq_peft" in told.get_payload()
    package = ROOT / "fairseq_peft"
    files = {
        str(path.relative_to(ROOT)).replace(os.sep, "/")
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if ".dist-info/" not in name} == files


@pytest.mark.end_to_end
def test_the_wheel_alone_is_the_user_dir(wheel, tmp_path):
    """In an environment that has fairseq and torch, and of the project the wheel only."""
    pytest.importorskip("fairseq")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    python = bare / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", wheel], check=True)
    # A path file adds these folders, but not what their own path files say: an editable
    # installation of the project is not seen.
    (packages,) = bare.glob("lib/*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*words):
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        env["OMP_NUM_THREADS"] = "1"
        return subprocess.run(words, cwd=elsewhere, env=env, capture_output=True, text=True)

    done = run(python.with_name("fairseq-peft"), "user-dir")
    assert done.returncode == 0, done.stderr
    folder = done.stdout.strip()
    assert folder == str(packages / "fairseq_peft")
    help_of = ("--arch", "roberta_lora", "--task", "sentence_classification", "--help")
    done = run(python, "-m", "fairseq_cli.train", "--user-dir", folder, *help_of)
    assert done.returncode == 0, done.stderr
    assert "--lora-rank" in done.stdout and "--train-examples" in done.stdout
