"""scripts/setup.sh: what it asks of a machine, and that every requirement is pinned."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from scripting import run_script

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(shutil.which("bash") is None, reason="no bash"),
]

HERE = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def fake_python(
    folder, name="python3", version=None, headers=True, venv=True, glibc="2.17", machine="x86_64"
):
    """A stand-in for an interpreter that lacks something; everything else is the real one."""
    folder.mkdir(exist_ok=True)
    include = folder / "include"
    include.mkdir(exist_ok=True)
    if headers:
        (include / "Python.h").write_text("")
    prelude = (
        "import platform, sys, sysconfig; real = sysconfig.get_paths; sys.platform = 'linux'; "
    )
    prelude += f"platform.libc_ver = lambda: ('glibc', '{glibc}'); "
    prelude += f"platform.machine = lambda: '{machine}'; "
    if version:
        prelude += f"sys.version_info = {version}; "
    paths = f"{{**real(*a, **k), 'include': {str(include)!r}}}"
    prelude += f"sysconfig.get_paths = lambda *a, **k: {paths}; "
    if not venv:
        prelude += "sys.modules['ensurepip'] = None; "
    path = folder / name
    path.write_text(
        f'#!/bin/bash\nif [ "$1" = -c ]; then exec {sys.executable} -c "{prelude}$2"; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def setup(project, tmp_path):
    """setup.sh in a copy of the project that has no .venv yet."""

    def run_it(*arguments, **environment):
        environment = {"PYTHON": "", "VIRTUAL_ENV": "", **environment}
        return run_script(project / "scripts" / "setup.sh", *arguments, cwd=tmp_path, **environment)

    return run_it


@pytest.mark.parametrize(
    ("lacks", "package"),
    [({"headers": False}, f"{HERE}-dev"), ({"venv": False}, f"{HERE}-venv")],
)
def test_setup_names_what_to_install(setup, project, tmp_path, lacks, package):
    done = setup(BASE_PYTHON=str(fake_python(tmp_path / "bin", **lacks)))
    assert done.returncode == 1
    assert f"apt-get install {package}\n" in done.stderr
    assert "Nothing was changed" in done.stderr
    assert not (project / ".venv").exists()


def test_setup_names_everything_at_once(setup, tmp_path):
    base = fake_python(tmp_path / "bin", headers=False, venv=False)
    done = setup(BASE_PYTHON=str(base), CXX="no-such-compiler")
    assert f"apt-get install {HERE}-venv build-essential {HERE}-dev" in done.stderr


def test_setup_compiles_nothing_where_fairseq_comes_compiled(setup, tmp_path):
    """For Python 3.12: neither compiler nor headers are asked for."""
    base = fake_python(tmp_path / "bin", version="(3, 12)", headers=False, glibc="2.28")
    done = setup("--dry-run", BASE_PYTHON=str(base), CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert f"{base} -m venv" in done.stdout
    assert "--only-binary :all: --force-reinstall fairseq-fixed" in done.stdout
    assert "cython" not in done.stdout


@pytest.mark.parametrize(
    "other", [{"version": "(3, 11)"}, {"glibc": "2.9"}, {"machine": "aarch64"}]
)
def test_setup_compiles_fairseq_elsewhere(setup, tmp_path, other):
    wheel = {"version": "(3, 12)", "glibc": "2.28"}
    base = str(fake_python(tmp_path / "bin", **{**wheel, **other}))
    done = setup("--dry-run", BASE_PYTHON=base)
    assert "cython" in done.stdout and "--only-binary" not in done.stdout
    assert setup("--dry-run", BASE_PYTHON=base, CXX="no-such-compiler").returncode == 1


def test_setup_refuses_a_python_that_does_not_fit(setup, tmp_path):
    done = setup(BASE_PYTHON=str(fake_python(tmp_path / "bin", version="(3, 14)")))
    assert done.returncode == 1
    assert "is not a Python 3.9 to 3.12" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_setup_refuses_an_unknown_extra(setup):
    done = setup("--dry-run", EXTRAS="dev,all")
    assert done.returncode == 1
    assert "'all' is unknown" in done.stderr


def test_setup_takes_torch_from_the_pins_or_from_the_user(setup, project, tmp_path):
    base = str(fake_python(tmp_path / "bin"))
    pin = "torch==2.8.0" if sys.version_info < (3, 10) else "torch==2.13.0"
    assert f"{pin}\n" in setup("--dry-run", BASE_PYTHON=base).stdout
    done = setup("--dry-run", BASE_PYTHON=base, TORCH="torch==2.7.1 --no-cache-dir")
    assert "torch==2.7.1 --no-cache-dir\n" in done.stdout
    assert not (project / ".venv").exists()


def test_every_requirement_is_pinned():
    """What setup.py asks for has a version in constraints.txt."""
    pinned = {
        re.split("==", line)[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    setup_py = (ROOT / "setup.py").read_text()
    wanted = re.findall(r'"([a-z][a-z0-9-]+)(?:[<>=;][^"]*)?"[,\]]', setup_py.split("readme = ")[1])
    wanted = {*wanted} - {"fairseq-fixed", "fairseq-peft"}
    assert {"torch", "numpy", "pytest", "transformers", "fastapi"} <= wanted
    assert wanted <= pinned
