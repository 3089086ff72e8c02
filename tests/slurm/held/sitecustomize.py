"""Stops the first training of a LoRA before its second checkpoint, until it is killed.

Python imports this where its folder is in PYTHONPATH: the jobs of test_slurm_sweep.py. So a test
has all the time it needs, and what goes on later goes on from epoch 1. Slurm lets a process go on
that it is about to kill; it stops again.
"""

import os
import signal
import sys

first = set()


def before(event, args):
    if event != "os.rename":
        return
    path = os.fsdecode(args[1])
    if not path.endswith("/checkpoint_last.pt") or "/scratch/lora/" not in path:
        return
    if not os.path.exists(path):
        first.add(path)
    while path in first and os.path.exists(path):
        os.kill(os.getpid(), signal.SIGSTOP)


sys.addaudithook(before)
