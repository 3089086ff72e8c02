"""What no file of the project may hold: paths of a machine, package servers, notes to self."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Written in pieces, so that this file passes its own test.
FOLDERS = "work|root|tmp|opt|mnt|(?:home|Users)(?!/me)"
FORBIDDEN = {
    "a path of a machine": r"(?<![\w.$}~*-])/(?:" + FOLDERS + r")/\w",
    "a package server": "pypi" + r"\.(?:org|python)|download" + r"\.pytorch\.org|/simp" + "le/",
    "a note to self": r"\b(?:" + "TO" + "DO|FIX" + r"ME)\b",
}


def tracked_files():
    """Files that git tracks or would add; outside a checkout there is nothing to look at."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def findings(text):
    """(line number, what it is, the line) of everything forbidden in ``text``."""
    return [
        (number, what, line.strip()[:120])
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if re.search(pattern, line)
    ]


def test_no_file_holds_what_belongs_to_one_machine():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture, or a test's bad input
            continue
        found += [
            f"{path.relative_to(ROOT)}:{line}: {what}: {seen}"
            for line, what, seen in findings(text)
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "/" + "root/x",
        "see /" + "tmp/log",
        "('/" + "home/ann')",
        "# TO" + "DO: later",
        "https://pypi" + ".org/project",
    ],
)
def test_this_test_sees_it(line):
    assert len(findings(line)) == 1


@pytest.mark.parametrize(
    "line", ["../shared/data", "/home" + "/me/x", "$ROOT/tmp/x", "a/tmp/b", "todos", "1/2"]
)
def test_this_test_lets_the_rest_through(line):
    assert findings(line) == []


def test_no_two_test_files_share_a_name():
    """pytest leaves the second one out, with an error at the very end."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
