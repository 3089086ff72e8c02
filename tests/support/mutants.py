"""Small wrong changes to the package, one after the other, and whether a test notices.

    MUTANTS=150 SEED=1 bash scripts/test.sh mutants [-- PATHS]

mutmut makes the changes (pyproject.toml, [tool.mutmut], says in which files): a copy of the package
in mutants/, in which every function has its mutants beside it, and a variable of the environment
says which one is called. Its own runner is not used: it needs two runs of all tests before the
first mutant, and then runs every test that calls a function, which is the whole contract for most
of them. Here a mutant meets the tests of its file, quick ones first, in a process forked from one
that has imported fairseq.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import fairseq  # noqa: F401  # once, for all forks
import pytest
from mutmut import __main__ as mutmut
from mutmut.mutation.trampoline import set_mutant_under_test

METHODS = Path("fairseq_peft/methods")
#: Room -> where its tests are, but for rooms that ``tests_of`` knows. (Tests that kill a process,
#: or count the steps of writing, do not go together with functions that mutmut has wrapped.)
WHERE = {
    "adapters": ["adapters/test_artifact.py", "adapters/test_corrupted.py"],
    "commands": ["report/test_best_run.py"],
    "criterions": ["criterions", "tasks"],
    "report": ["report/test_result.py"],
    "serving": ["serving"],
    "tasks": ["tasks"],
}
LIMIT_S = 600  # of processor time, for the tests of one mutant
ALWAYS = (
    "-x",
    "-q",
    "-n0",
    "--rootdir=.",
    "-p",
    "no:cacheprovider",
    "-m",
    "not end_to_end or ways",
)


def generate() -> dict[str, Path]:
    """Write mutants/; returns mutant -> file."""
    set_mutant_under_test("mutant_generation")
    os.makedirs("mutants", exist_ok=True)
    with contextlib.redirect_stdout(None):
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.create_mutants(1)
    found, _ = mutmut.collect_source_file_mutation_data(mutant_names=())
    return {name: Path(data.path) for data, name, _ in found}


def tests_of(path: Path) -> list[str]:
    """What pytest is given for the mutants of a file: the tests of its room, and for a method the
    golden numbers and the contract of all settings that it is part of."""
    room = path.parts[1]
    if room == "injection":
        chosen = "(injection or golden or all-linear) and not ways"
        return ["tests/injection", "tests/test_golden.py", "tests/methods", "-k", chosen]
    if room != "methods":
        chosen = "not ways or predict-lora or predict-prefix or resume-lora"
        files = [f"tests/{name}" for name in WHERE[room]]
        return ["tests/test_golden.py", *files, "tests/methods/test_ways.py", "-k", chosen]
    names = [path.stem]
    if path.parent != METHODS:  # shared: the methods that are built on it
        used = re.compile(rf"shared(\.| import .*\b){path.stem}\b")
        names = [file.stem for file in METHODS.glob("*.py") if used.search(file.read_text())]
    if names in (["__init__"], ["base"]):
        names = ["lora", "adalora", "bitfit", "prompt"]
    own = [f"tests/methods/test_{name}.py" for name in sorted(names)]
    own = [file for file in own if Path(file).exists()]
    chosen = f"({' or '.join(sorted(names))}) and not ways"
    return ["tests/test_golden.py", *own, "tests/methods", "-k", chosen]


class Failed:
    """A plugin of pytest that keeps the name of the test that failed."""

    test = ""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.test = report.nodeid


def failure(mutant: str, tests: list[str]) -> str | None:
    """The first test that fails under a mutant ("" for none); "" where not even that can be told,
    None where all pass."""
    reads, writes = os.pipe()
    process = os.fork()
    if process:
        os.close(writes)
        with open(reads) as pipe:
            test = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code not in (4, 5), f"pytest finds no test: {tests}"
        return None if code == 0 else test
    failed, code = Failed(), 1
    try:
        # The child's: mutants/ in place of the package, and no word of what its tests say.
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
        os.chdir("mutants")
        sys.path.insert(0, os.getcwd())
        os.environ["PYTHONPATH"] = os.getcwd()
        set_mutant_under_test(mutant)
        with open(os.devnull, "w") as nothing:
            for stream in (1, 2):
                os.dup2(nothing.fileno(), stream)
            code = int(pytest.main([*ALWAYS, *tests], plugins=[failed]))
    finally:
        os.write(writes, failed.test.encode())
        os._exit(code)


def main(size: int, seed: int, paths: list[str]):
    file_of = generate()
    wanted = [path.rstrip("/") for path in paths] or ["fairseq_peft"]
    chosen = sorted(name for name in file_of if any(w in str(file_of[name]) for w in wanted))
    random.Random(seed).shuffle(chosen)
    sample = chosen[:size]
    print(f"{len(sample)} of {len(chosen)} mutants, seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verdicts = {}
    with contextlib.suppress(KeyboardInterrupt):  # what was found until then is told
        run(sample, file_of, verdicts)
    tell(verdicts, file_of)


def run(sample, file_of, verdicts):
    """Fill ``verdicts``: mutant -> the test that caught it, None for one that survived."""
    sound, left_out = set(), []
    for number, name in enumerate(sample, start=1):
        while True:
            test = failure(name, [*tests_of(file_of[name]), *left_out])
            if not test or test in sound:
                break
            if failure("", [test]) is None:  # so it is the mutant that it fails for
                sound.add(test)
                break
            print(f"{test} fails in mutants/ without any mutant, and is left out", flush=True)
            left_out.append(f"--deselect={test}")
        verdicts[name] = test
        verdict = "SURVIVED" if test is None else f"caught by {test or 'all tests'}"
        print(f"{number} {name}: {verdict}", flush=True)


def tell(verdicts, file_of):
    """Print the survivors, and how many of each room were caught."""
    survivors = [name for name, test in verdicts.items() if test is None]
    for name in survivors:
        print(f"\n{file_of[name]}\n{mutmut.get_diff_for_mutant(name)}")
    rooms = Counter(file_of[name].parts[1] for name in verdicts)
    left = Counter(file_of[name].parts[1] for name in survivors)
    for room, number in sorted(rooms.items()):
        print(f"{room:12} {number - left[room]:4} of {number:4} caught")
    caught = len(verdicts) - len(survivors)
    print(f"{'all':12} {caught:4} of {len(verdicts):4} caught: {caught / len(verdicts):.0%}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
