"""Every script: its --help, its --dry-run, its first lines, and shellcheck."""

import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from scripting import run_script

from fairseq_peft import precision

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = [
    ROOT / "scripts" / name for name in ("lib.sh", "finetune_lib.sh", "translation_lib.sh")
]
SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.sh") if path not in LIBRARIES)
SHELL_FILES = [*SCRIPTS, *LIBRARIES, ROOT / ".ci" / "run"]

# Scripts whose --dry-run needs arguments or knobs: name -> (arguments, environment).
# {inputs} is a folder with raw data, {train,valid,test}.{review,label}, and label/train.idx.
# labels.
DRY_RUNS = {
    "prepare_data.sh": (["{inputs}", "example"], {}),
    "pretrain.sh": ([], {"RAW": "{inputs}/text.txt", "SAVE_DIR": "{project}/checkpoints/example"}),
    "finetune.sh": ([], {"DATA": "{inputs}", "INIT": "scratch"}),
    "finetune_hf.sh": ([], {"DATA": "{inputs}", "HF_BASE": "{inputs}"}),
    "sweep.sh": ([], {"DATA": "{inputs}", "BASE": "{inputs}/text.txt"}),
    **dict.fromkeys(
        ("t5_sentiment.sh", "bloom_instructions.sh", "gpt2_summarization.sh"), (["--tiny"], {})
    ),
}

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(shutil.which("bash") is None, reason="no bash"),
]


def snapshot(folder):
    """Every file and folder under ``folder`` with its time, without Python's caches."""
    found = {}
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found.update({os.path.join(directory, name): None for name in folders})
        for name in files:
            path = Path(directory, name)
            found[str(path)] = path.stat().st_mtime_ns
    return found


@pytest.fixture
def inputs(tmp_path):
    """Raw data (labelled reviews and a text), and label/train.idx, where scripts read the rows."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    for subset in ("train", "valid", "test"):
        rows = [f"{subset} review number {row}, good or bad\n" for row in range(8)]
        (folder / f"{subset}.review").write_text("".join(rows), encoding="utf-8")
        (folder / f"{subset}.label").write_text("0\n1\n" * 4, encoding="utf-8")
    (folder / "label").mkdir()
    (folder / "label" / "train.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 4, 8))
    (folder / "text.txt").write_text("one line of text\n" * 50, encoding="utf-8")
    return folder


def by_name(path):
    return path.name


@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_help_prints_the_usage(path, tmp_path):
    done = run_script(path, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    usage = re.search(rf"^Usage: .*\b{re.escape(path.name)}", done.stdout, re.MULTILINE)
    assert usage, "no line 'Usage: ... NAME ...'"
    assert "--dry-run" in done.stdout
    assert len(done.stdout.splitlines()) > 1, "a usage line alone explains nothing"
    assert os.listdir(tmp_path) == []


def knobs_in(text):
    return re.findall(r"^ *([A-Z0-9_]+)=\$\{\1:-.*#", text, re.MULTILINE)


@pytest.mark.parametrize(
    "path", [path for path in SCRIPTS if "All knobs are variables" in path.read_text()], ids=by_name
)
def test_help_prints_every_knob(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    wanted = knobs_in(text)
    if path.name.startswith(("finetune", "sweep")):
        wanted = knobs_in(LIBRARIES[1].read_text(encoding="utf-8")) + wanted
    assert len(wanted) > 5
    assert knobs_in(run_script(path, "--help", cwd=tmp_path).stdout) == wanted


@pytest.mark.parametrize(
    "given",
    [
        {},
        {
            **{"SEED": "7", "LR": "3e-3", "EPOCHS": "2", "BATCH_SIZE": "4", "PRECISION": "bf16"},
            **{"SUBSETS": "valid", "RUNS": "elsewhere"},
        },
    ],
    ids=["defaults", "given"],
)
def test_both_finetune_scripts_read_the_same_knobs(given, inputs):
    """What decides whether two runs can be compared is the same in both."""
    found = []
    names = {"--max-epoch": "--epochs", "--valid-subset": "--subsets"}
    for name in ("finetune.sh", "finetune_hf.sh"):
        _, environment = DRY_RUNS[name]
        environment = {key: value.format(inputs=inputs) for key, value in environment.items()}
        environment |= {"INIT": "pretrained", "BASE": "model.pt", "LABEL": "same", **given}
        environment.pop("HF_BASE", None)
        path = ROOT / "scripts" / name
        done = run_script(path, "--dry-run", cwd=inputs, **environment)
        assert done.returncode == 0, done.stderr
        words = shlex.split(done.stdout)
        flags = {names.get(word, word): words[i + 1] for i, word in enumerate(words[:-1])}
        flags["--precision"] = precision.resolve(flags["--precision"])  # what auto means here
        compared = ("--lr", "--seed", "--epochs", "--batch-size", "--precision", "--subsets")
        found.append({flag: flags[flag] for flag in (*compared, "--save-dir")})
        own = knobs_in(path.read_text(encoding="utf-8"))
        assert not set(own) & set(knobs_in(LIBRARIES[1].read_text(encoding="utf-8")))
    assert found[0] == found[1]


@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_dry_run_changes_nothing(path, tmp_path, project, inputs, request):
    if path.name == "setup.sh" and sys.prefix == sys.base_prefix:
        pytest.skip("needs a virtual environment")
    arguments, environment = DRY_RUNS.get(path.name, ([], {}))
    places = {"inputs": inputs, "project": project}
    arguments = [argument.format(**places) for argument in arguments]
    environment = {name: value.format(**places) for name, value in environment.items()}
    if path.name == "sweep.sh":  # asks for the learning rates of every cell
        environment |= {"PYTHON": request.getfixturevalue("python"), "FORK_SWEEPS": "1"}
    before = snapshot(tmp_path)
    done = run_script(
        project / "scripts" / path.name, *arguments, "--dry-run", cwd=inputs, **environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "a dry run shows the commands"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_an_unknown_option_is_one_line_and_an_error(path, tmp_path):
    done = run_script(path, "--no-such-option", cwd=tmp_path)
    assert done.returncode != 0
    assert "--no-such-option" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=by_name)
def test_the_shell_is_strict(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    code = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail"


@pytest.mark.parametrize("path", SHELL_FILES, ids=by_name)
def test_shellcheck(path):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    program = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


# ---- lib.sh --------------------------------------------------------------------------------------

SCRIPT = r"""#!/usr/bin/env bash
# Usage: example.sh [--dry-run] [NAME]
# What it does.
set -euo pipefail
# shellcheck source=lib.sh
. "{lib}"
parse_args "$@"
printf 'ARGS'; printf ' <%s>' ${{ARGS[@]+"${{ARGS[@]}}"}}; printf '\n'
printf 'EXTRA'; printf ' <%s>' ${{EXTRA[@]+"${{EXTRA[@]}}"}}; printf '\n'
{body}
"""


@pytest.fixture
def example(tmp_path):
    def run_it(body, *arguments, **environment):
        path = tmp_path / "example.sh"
        path.write_text(SCRIPT.format(lib=ROOT / "scripts" / "lib.sh", body=body), encoding="utf-8")
        return run_script(path, *arguments, cwd=tmp_path, **environment)

    return run_it


def test_lib_arguments(example):
    done = example("", "a b", "c", "--", "--lr", "1 2", "--help")
    assert done.stdout == "ARGS <a b> <c>\nEXTRA <--lr> <1 2> <--help>\n"


def test_lib_help(example):
    assert example("", "--help").stdout == "Usage: example.sh [--dry-run] [NAME]\nWhat it does.\n"


def test_lib_dry_run_prints_commands_that_can_be_pasted(example):
    done = example('run touch "a b"; step "a step" touch c; fairseq_cli train x', "--dry-run")
    lines = done.stdout.splitlines()[2:]
    assert lines[:3] == ["touch a\\ b", "# a step", "touch c"]
    assert lines[3] == f"{sys.executable} -m fairseq_cli.train x"


def test_lib_step_reports_seconds(example):
    done = example('step "two words" true')
    assert re.fullmatch(r"two words +\d+ s", done.stdout.splitlines()[-1])


def test_lib_step_fails_inside_a_function_and_shows_the_log(example, tmp_path):
    body = 'bad() { echo seen; false; echo unseen; }; step "a step" bad; echo unseen'
    done = example(body, LOG=str(tmp_path / "log"))
    assert done.returncode == 1
    assert "unseen" not in done.stdout + done.stderr
    assert "seen" in done.stderr
    assert "example.sh: error: 'a step' failed with status 1" in done.stderr


def test_lib_die_is_one_line(example):
    done = example("die 'no such file'; echo unseen")
    assert done.returncode == 1
    assert done.stderr == "example.sh: error: no such file\n"
    assert "unseen" not in done.stdout


def test_lib_peft_cli_runs_from_anywhere(example):
    done = example("peft_cli --version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("fairseq_peft ")


# ---- test.sh -------------------------------------------------------------------------------------


def test_real_fetches_what_is_pinned(project, tmp_path):
    """With hashes, without what the packages depend on; nothing, where it is all there."""
    pins, folder = project / "tests" / "real", project / ".venv-real"
    shutil.copytree(ROOT / "tests" / "real", pins)

    def dry_run():
        path = project / "scripts" / "test.sh"
        done = run_script(path, "real", "--dry-run", "--", "-k", "minilm", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("-m pytest -m real -k minilm\n")
        return done.stdout

    pip = [line for line in dry_run().splitlines() if " pip " in line]
    assert len(pip) == 2 and all("--no-deps --require-hashes" in line for line in pip)
    files = [pins / f"requirements-{name}.txt" for name in ("library", "packages")]
    folder.mkdir()
    (folder / "requirements.txt").write_text("".join(file.read_text() for file in files))
    assert "already there" in dry_run() and " pip " not in dry_run()


def test_parity_has_an_environment_for_each_library(project, tmp_path):
    """Made when missing, kept when its pins are the same, made again when they changed."""

    def dry_run():
        before = snapshot(tmp_path)
        path = project / "scripts" / "test.sh"
        done = run_script(path, "parity", "--dry-run", "--", "-k", "lora", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert snapshot(tmp_path) == before
        return done.stdout

    pins = project / "tests" / "parity"
    shutil.copytree(ROOT / "tests" / "parity", pins)
    output = dry_run()
    for name in ("peft", "adapters"):
        folder = project / f".venv-{name}"
        assert f"{sys.executable} -m venv {folder}\n" in output
        assert f"-r {pins}/requirements-{name}.txt\n" in output
        assert f"FAIRSEQ_PEFT_{name.upper()}_PYTHON={folder}/bin/python" in output
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
        shutil.copy(pins / f"requirements-{name}.txt", folder / "requirements.txt")
    assert output.endswith("-m pytest -m parity -k lora\n")

    with open(pins / "requirements-peft.txt", "a") as file:
        file.write("# another pin\n")
    output = dry_run()
    assert ".venv-adapters: already there" in output
    assert f"-m venv {project}/.venv-peft\n" in output


def test_mutants_are_a_sample_of_the_files_that_are_named(project, tmp_path):
    words = ("mutants", "--dry-run", "--", "fairseq_peft/methods")
    path = project / "scripts" / "test.sh"
    done = run_script(path, *words, cwd=tmp_path, MUTANTS="7", SEED="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" tests/support/mutants.py 7 3 fairseq_peft/methods\n")


def test_fuzzing_takes_the_readers_that_are_named(project, tmp_path):
    path = project / "scripts" / "test.sh"
    words = ("fuzz", "--dry-run", "--", "tables")
    done = run_script(path, *words, cwd=tmp_path, SECONDS_EACH="7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" tests/fuzz/run.py 7 tables\n")


def test_the_tests_go_to_all_cores_and_fast_leaves_out_the_long_ones(tmp_path):
    pytest.importorskip("xdist")
    path = ROOT / "scripts" / "test.sh"
    commands = [
        run_script(path, *words, "--dry-run", "--", "-n", "0", cwd=tmp_path).stdout.splitlines()[-1]
        for words in ([], ["fast"])
    ]
    assert all("-m pytest -n auto " in command and "loadfile" in command for command in commands)
    assert all(command.endswith(" -n 0") for command in commands)  # the last word is the user's
    left_out = r"-m not\ end_to_end\ and\ not\ knobs"
    assert [left_out in command for command in commands] == [False, True]
