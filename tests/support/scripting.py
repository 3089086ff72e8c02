"""Running a script of scripts/, or a copy of one."""

from __future__ import annotations

import os
import subprocess
import sys


def run_script(path, *arguments, cwd, **environment):
    # The Python of these tests stands for the environment that setup.sh would have made.
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(
        ["bash", str(path), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
