#!/usr/bin/env bash
# Usage: scripts/test_matrix.sh [--dry-run] [VERSION ...]
#
# The fast tests on several Pythons (3.9 3.10 3.11 3.12), each in an environment of its own, and a table of what ran.
# The Python of the active environment, or of .venv, is tested as it is, with torch and fairseq. Every other gets
# .venv-matrix/VERSION with the pinned packages of setup.py but torch, which is gigabytes where only the CUDA build is
# to be had, and without fairseq, which needs torch: there the package is imported, every command says its --help, and
# the tests that need neither run; the rest is skipped, and counted. With TORCH an environment is whole, too.
#
# A VERSION is looked for as pythonVERSION, then among pyenv's; one that is not there is a line of the table.
#
# Knobs (environment variables):
#   TORCH=             what pip gets for torch, see scripts/setup.sh; empty: none
#   MATRIX=            folder of the environments, default .venv-matrix in the project
#   PYTHON=            the Python that is tested as it is
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#EXTRA[@]}" = 0 ] || die "takes no flags of fairseq-train; see --help"

TORCH=${TORCH:-}                       # torch for pip; empty: without torch
MATRIX=${MATRIX:-$ROOT/.venv-matrix}   # the environments
VERSIONS=("${ARGS[@]+"${ARGS[@]}"}")
[ "${#VERSIONS[@]}" -gt 0 ] || VERSIONS=(3.9 3.10 3.11 3.12)
cd "$ROOT"

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_version() { # find_version 3.10: a Python of that version, or nothing
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if [ "$(version_of "$candidate")" = "$1" ]; then
      echo "$candidate"
      return
    fi
  done
}

# What setup.py asks for, without torch, and what the tests ask for.
NEEDS="import setuptools
setuptools.setup = lambda **said: print(*(name for name in said['install_requires'] if name[:5] != 'torch'), 'pytest', 'tokenizers', 'regex')
exec(open('setup.py').read().replace('__file__', repr('setup.py')))"

# Every command, imported, and its --help.
HELP="import contextlib, io, pkgutil, fairseq_peft
from fairseq_peft import cli, commands
names = [info.name.strip('_').replace('_', '-') for info in pkgutil.iter_modules(commands.__path__)]
for name in names:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main([name, '--help'])
print(len(names), 'commands')"

installed() { # installed PYTHON NAME: its version, or a dash
  "$1" -c 'import sys; from importlib import metadata; print(metadata.version(sys.argv[1]))' "$2" 2>/dev/null || echo -
}

ROWS=()
STATUS=0
test_one() { # test_one VERSION PYTHON
  local help tests
  if run "$2" -c "$HELP" >"$MATRIX/help-$1.log" 2>&1; then
    help=$(tail -n 1 "$MATRIX/help-$1.log")
  else
    help=failed
    STATUS=1
  fi
  local plugin=no:cacheprovider
  [ "$(installed "$2" torch)" != - ] || plugin=without_torch
  run env OMP_NUM_THREADS=1 PYTHONPATH="$ROOT/tests/support" "$2" -m pytest -q -p "$plugin" -m "not end_to_end and not knobs" \
    >"$MATRIX/tests-$1.log" 2>&1 || STATUS=1
  tests=$(tail -n 1 "$MATRIX/tests-$1.log")
  ROWS+=("| $("$2" -c 'import platform; print(platform.python_version())') | $(installed "$2" torch) | $(installed "$2" fairseq-fixed) | $help | ${tests% in *} |")
}

[ "$DRY_RUN" = 1 ] || mkdir -p "$MATRIX"
for version in "${VERSIONS[@]}"; do
  folder=$MATRIX/$version
  if [ "$(version_of "$PYTHON")" = "$version" ] && [ "$(installed "$PYTHON" torch)" != - ]; then
    python=$PYTHON
  else
    base=$(find_version "$version")
    if [ -z "$base" ]; then
      ROWS+=("| $version | - | - | not on this machine | - |")
      continue
    fi
    python=$folder/bin/python
    [ -x "$python" ] || step "Python $version" run "$base" -m venv "$folder"
    if [ -n "$TORCH" ]; then
      run env -u VIRTUAL_ENV TORCH="$TORCH" PYTHON="$python" bash "$ROOT/scripts/setup.sh"
    else
      read -r -a needs < <("$PYTHON" -c "$NEEDS")
      run "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "${needs[@]}"
    fi
  fi
  if [ "$DRY_RUN" = 1 ]; then
    run "$python" -m pytest -q -p no:cacheprovider -m "not end_to_end and not knobs"
  else
    test_one "$version" "$python"
  fi
done
if [ "$DRY_RUN" = 0 ]; then
  printf '%s\n' "| Python | torch | fairseq-fixed | --help | fast tests |" "|---|---|---|---|---|" "${ROWS[@]}"
  echo "pytest's output: $MATRIX/tests-VERSION.log"
fi
exit $STATUS
