"""Small wrong changes to the package, one after the other, and whether a test notices: mutmut on a
random sample of all that it can change (pyproject.toml, [tool.mutmut], says where).

    MUTANTS=150 SEED=1 bash scripts/test.sh mutants [-- PATHS]

Works in mutants/, a copy of the package and of its tests. What the tests call is looked up first,
which takes one run of them and is kept there, and so are the verdicts.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from fnmatch import fnmatch

from mutmut import __main__ as mutmut
from mutmut.mutation.trampoline import set_mutant_under_test

CAUGHT = ("killed", "timeout", "segfault")


def generate():
    """Write mutants/; returns file -> what is known of its mutants."""
    set_mutant_under_test("mutant_generation")
    os.makedirs("mutants", exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.create_mutants(1)
    found, _ = mutmut.collect_source_file_mutation_data(mutant_names=())
    return {name: str(data.path) for data, name, _ in found}


def main(size: int, seed: int, paths: list[str]):
    paths_of = generate()
    chosen = [
        name
        for name, path in sorted(paths_of.items())
        if not paths or any(fnmatch(path, f"*{wanted.rstrip('/')}*") for wanted in paths)
    ]
    sample = random.Random(seed).sample(chosen, min(size, len(chosen)))
    print(f"{len(sample)} of {len(chosen)} mutants, seed {seed}", flush=True)
    mutmut._run(sample, max_children=1)

    data = mutmut.collect_source_file_mutation_data(mutant_names=tuple(sample))[0]
    verdicts = {
        name: mutmut.status_by_exit_code[one.exit_code_by_key[name]] for one, name, _ in data
    }
    for name in sorted(verdicts):
        if verdicts[name] not in CAUGHT:
            print(f"\n# {verdicts[name]}: {name}\n{mutmut.get_diff_for_mutant(name)}")
    caught = sum(verdict in CAUGHT for verdict in verdicts.values())
    print(f"\n{caught} of {len(verdicts)} mutants caught ({caught / len(verdicts):.0%}):", end=" ")
    print(", ".join(f"{number} {word}" for word, number in Counter(verdicts.values()).items()))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
