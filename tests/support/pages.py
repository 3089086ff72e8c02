"""Pages of docs/ that are executed: their files, their commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess


def files_of(page):
    """path -> content, for every code block that follows a line that begins with a path."""
    return dict(re.findall(r"^`([\w/.]+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", page, re.M | re.S))


def commands_of(page):
    """(command, lines of its output that the page shows), for every line of every bash block; what
    a block's commands put out together stands below the last one."""
    found = []
    for block, shown in re.findall(
        r"^```bash\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", page, re.M | re.S
    ):
        found.append((block.splitlines(), shown.splitlines()))
    return found


def runner(folder, python):
    """``run(command)``: one line of a page, with the package that is in ``folder``."""

    def run_line(command):
        program, *arguments = shlex.split(command)
        module = {"fairseq-train": "fairseq_cli.train", "fairseq-peft": "fairseq_peft.cli"}
        words = ["-m", module[program]] if program in module else []
        environment = {**os.environ, "COLUMNS": "120"}
        return subprocess.run(
            [python, *words, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )

    return run_line


def number_of(outcome, done):
    found = re.search(rf"(\d+) {outcome}", done.stdout)
    return int(found[1]) if found else 0
