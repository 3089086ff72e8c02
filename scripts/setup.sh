#!/usr/bin/env bash
# Usage: scripts/setup.sh [--dry-run]
#
# Installs fairseq_peft and everything it needs into the active virtual environment, else into .venv,
# which it makes. Safe to run again: what is there is kept, and nothing is downloaded where nothing is missing.
# Needs Python 3.9 to 3.12 with its venv module. fairseq comes compiled for Python 3.12 on Linux (x86-64, glibc 2.28
# or newer); elsewhere it is compiled here, which takes minutes, a C++ compiler and Python's headers.
#
# Knobs (environment variables):
#   EXTRAS=dev         extras of setup.py to install: dev (tests, linters), hf (Hugging Face), docs (the
#                      documentation site), serve (the HTTP service), html (report --html), scores (BLEU, chrF and ROUGE),
#                      slurm (sweeps on a cluster), onnx (export
#                      --format onnx), several as dev,hf, or none
#   TORCH=             what pip gets for torch, default the pin in constraints.txt. Words of pip are allowed:
#                      TORCH="torch==2.13.0 --index-url ADDRESS" takes the CPU or CUDA build that PyTorch's
#                      site names. A torch that is already installed is kept unless TORCH is given.
#   BASE_PYTHON=       the Python that .venv is made with, default the first of python3.11, python3.12,
#                      python3.10, python3.9, python3 that fits
#   CONSTRAINTS=       pinned versions, default constraints.txt
#   PYTHON=            the Python of the virtual environment to install into
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#ARGS[@]}" = 0 ] && [ "${#EXTRA[@]}" = 0 ] || die "takes no arguments; see --help"

EXTRAS=${EXTRAS:-dev}                               # dev, hf, docs, serve, html, scores, slurm, onnx, "dev,hf" or none
TORCH=${TORCH:-}                                    # torch for pip; empty: the pin, or what is there
BASE_PYTHON=${BASE_PYTHON:-}                        # makes .venv; empty: the first that fits
CONSTRAINTS=${CONSTRAINTS:-$ROOT/constraints.txt}   # pinned versions

[ "$EXTRAS" != none ] || EXTRAS=
FAIRSEQ=fairseq-fixed==0.12.3.1
# What fairseq-fixed imports. It also declares torchaudio, which text models never import.
FAIRSEQ_NEEDS="hydra-core omegaconf cffi regex sacrebleu tqdm bitarray scikit-learn packaging"

for extra in ${EXTRAS//,/ }; do
  case $extra in
    dev | hf | docs | serve | html | scores | slurm | onnx) ;;
    *)
      die "EXTRAS='$EXTRAS': '$extra' is unknown; known are dev, hf, docs, serve, html, scores, slurm and onnx" \
        "(fairseq is always installed)"
      ;;
  esac
done
[ -r "$CONSTRAINTS" ] || die "CONSTRAINTS='$CONSTRAINTS' cannot be read"

# ---- where to install ----------------------------------------------------------------------------

fits() { # is this Python there, and 3.9 to 3.12?
  "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

comes_compiled() { # is there a wheel of fairseq-fixed for this Python?
  "$1" -c 'import platform, sys
library, version = platform.libc_ver()
here = sys.version_info[:2] == (3, 12) and sys.platform == "linux" and platform.machine() == "x86_64"
sys.exit(not (here and library == "glibc" and tuple(map(int, version.split("."))) >= (2, 28)))'
}

in_venv() {
  "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' >/dev/null 2>&1
}

if [ -n "$GIVEN_PYTHON" ]; then
  in_venv "$PYTHON" || die "PYTHON='$PYTHON' is not the Python of a virtual environment;" \
    "to choose the one that .venv is made with, set BASE_PYTHON"
elif [ -z "${VIRTUAL_ENV:-}" ] || [ ! -x "$VIRTUAL_ENV/bin/python" ]; then
  PYTHON=$ROOT/.venv/bin/python
fi
ENV_DIR=$(dirname "$(dirname "$PYTHON")")

if [ -x "$PYTHON" ]; then
  fits "$PYTHON" || die "the environment $ENV_DIR has $("$PYTHON" --version 2>&1);" \
    "Python 3.9 to 3.12 is needed: deactivate it, or remove it and run again"
  SOURCE_PYTHON=$PYTHON
else
  if [ -z "$BASE_PYTHON" ]; then
    for candidate in python3.11 python3.12 python3.10 python3.9 python3; do
      if fits "$candidate"; then BASE_PYTHON=$candidate; break; fi
    done
  fi
  [ -n "$BASE_PYTHON" ] || die "no Python 3.9 to 3.12 here; on Debian and Ubuntu: apt-get install python3" \
    "(a newer Python only: install 3.11 or 3.12 beside it and set BASE_PYTHON)"
  fits "$BASE_PYTHON" || die "BASE_PYTHON='$BASE_PYTHON' is not a Python 3.9 to 3.12"
  SOURCE_PYTHON=$BASE_PYTHON
fi

# ---- what is there -------------------------------------------------------------------------------

has_pip() { [ -x "$PYTHON" ] && "$PYTHON" -m pip --version >/dev/null 2>&1; }

installed() { # installed NAME: the version of a distribution, empty if it is not there
  [ -x "$PYTHON" ] || return 0
  "$PYTHON" - "$1" <<'END'
import sys
from importlib import metadata
try:
    print(metadata.version(sys.argv[1]))
except metadata.PackageNotFoundError:
    pass
END
}

fairseq_compiled() { # fairseq-fixed with the compiled module without which it cannot make batches
  [ "fairseq-fixed==$(installed fairseq-fixed)" = "$FAIRSEQ" ] && "$PYTHON" - <<'END'
import glob, importlib.util, os, sys
spec = importlib.util.find_spec("fairseq")
places = list(spec.submodule_search_locations or []) if spec else []
sys.exit(not any(glob.glob(os.path.join(p, "data", "data_utils_fast*.so")) for p in places))
END
}

NEEDS_FAIRSEQ=1
if fairseq_compiled; then NEEDS_FAIRSEQ=0; fi
STOCK=$(installed fairseq)
[ -z "$STOCK" ] || die "fairseq $STOCK is installed in $ENV_DIR; it and fairseq-fixed overwrite each other's files." \
  "Remove both and run again: $PYTHON -m pip uninstall -y fairseq fairseq-fixed"

# ---- what only the system can give: all of it at once, before anything is done ----------------------

VERSION=$("$SOURCE_PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
MISSING=()
PACKAGES=()
if ! has_pip && ! "$SOURCE_PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1; then
  MISSING+=("the venv module of Python $VERSION")
  PACKAGES+=("python$VERSION-venv")
fi
COMPILES=$NEEDS_FAIRSEQ
if comes_compiled "$SOURCE_PYTHON"; then COMPILES=0; fi
if [ $COMPILES = 1 ]; then
  if ! command -v "${CC:-gcc}" >/dev/null || ! command -v "${CXX:-g++}" >/dev/null; then
    MISSING+=("a C and C++ compiler")
    PACKAGES+=(build-essential)
  fi
  HEADERS=$("$SOURCE_PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  if [ ! -f "$HEADERS/Python.h" ]; then
    MISSING+=("the headers of Python $VERSION (Python.h)")
    PACKAGES+=("python$VERSION-dev")
  fi
fi
if [ "${#MISSING[@]}" -gt 0 ]; then
  {
    echo "setup.sh: error: this machine lacks:"
    printf '  %s\n' "${MISSING[@]}"
    echo "On Debian and Ubuntu: sudo apt-get install ${PACKAGES[*]}"
    echo "Nothing was changed."
  } >&2
  exit 1
fi

# ---- install -------------------------------------------------------------------------------------

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
PIN=$("$SOURCE_PYTHON" - "$CONSTRAINTS" <<'END'
import re, sys
for line in open(sys.argv[1], encoding="utf-8"):  # the line for this Python
    found = re.match(r'(torch==[^;\s]+)(?:; python_version (>=|<) "3\.(\d+)")?$', line.strip())
    if found:
        pin, sign, minor = found.groups()
        here = sys.version_info[1]
        if sign is None or (here >= int(minor) if sign == ">=" else here < int(minor)):
            print(pin)
END
)

if [ "$DRY_RUN" = 0 ]; then
  mkdir -p "$ENV_DIR"
  LOG=$ENV_DIR/setup.log
  : >"$LOG"
  PINS=$ENV_DIR/setup-constraints.txt
  echo "Installing into $ENV_DIR (pip's output: $LOG)"
else
  PINS=$CONSTRAINTS
fi

pins() { # the constraints, with torch held at what is installed, so that no later step replaces it
  grep -v '^torch==' "$CONSTRAINTS" >"$PINS"
  [ -z "$1" ] || echo "torch==$1" >>"$PINS"
}

install() { run "$PYTHON" -m pip install -c "$PINS" "$@"; }

have() { printf '%-68s    -\n' "$1: already there"; }

if has_pip; then
  have "virtual environment, Python $VERSION"
else
  step "virtual environment, Python $VERSION" run "$SOURCE_PYTHON" -m venv "$ENV_DIR"
fi

TORCH_VERSION=$(installed torch)
[ "$DRY_RUN" = 1 ] || pins ""
if [ -n "$TORCH_VERSION" ] && [ -z "$TORCH" ]; then
  have "torch $TORCH_VERSION"
else
  TORCH=${TORCH:-${PIN:-torch}}
  # shellcheck disable=SC2086  # TORCH may hold options for pip
  step "$TORCH (large)" install $TORCH
fi
[ "$DRY_RUN" = 1 ] || pins "$(installed torch)"

if [ $COMPILES = 1 ]; then
  step "what fairseq is compiled with (cython, numpy, setuptools)" install "setuptools<81" wheel cython numpy
  # --no-build-isolation: pip would otherwise download a second torch, with CUDA, only to compile.
  # --no-deps: one of its dependencies, torchaudio, would replace torch and is never imported for text.
  step "$FAIRSEQ, compiled here (minutes)" \
    run "$PYTHON" -m pip install --no-deps --no-build-isolation --force-reinstall "$FAIRSEQ"
elif [ $NEEDS_FAIRSEQ = 1 ]; then
  step "$FAIRSEQ" run "$PYTHON" -m pip install --no-deps --only-binary :all: --force-reinstall "$FAIRSEQ"
else
  have "$FAIRSEQ"
fi

# shellcheck disable=SC2086  # a list
step "what fairseq imports" install $FAIRSEQ_NEEDS

project() {
  cd "$ROOT"
  install "setuptools<81" wheel
  install --no-build-isolation -e ".${EXTRAS:+[$EXTRAS]}"
}
step "fairseq_peft${EXTRAS:+ [$EXTRAS]} and what it needs" project

step "check: fairseq-peft doctor" peft_cli doctor
[ "$DRY_RUN" = 1 ] && exit 0
echo "Ready. (pip may complain that fairseq-fixed wants torchaudio: text models never import it, ignore that.)"
case ${VIRTUAL_ENV:-} in
  "$ENV_DIR") ;;
  *) echo "The scripts find it by themselves; for your own commands: source $ENV_DIR/bin/activate" ;;
esac
