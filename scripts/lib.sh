# shellcheck shell=bash
# What the scripts share. A script starts like this (the comment on top is what --help prints):
#
#   #!/usr/bin/env bash
#   # Usage: example.sh [--dry-run] [NAME] [-- FLAGS OF fairseq-train]
#   set -euo pipefail
#   # shellcheck source=lib.sh
#   . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#   parse_args "$@"
#
# Sets, from then on (arrays may be empty; write "${ARGS[@]+"${ARGS[@]}"}" for bash 3 and 4.3):
#   ROOT     the project's root                  ARGS   what stands before `--`
#   PYTHON   the Python everything runs with     EXTRA  what follows `--`, for fairseq-train verbatim
#   DRY_RUN  1: print the commands, change nothing
#   MADE     tiny or small: --tiny or --small was given, where the script has named it in TAKES_MADE before
#   CHANGE   --redo or --extend, where the script has set TAKES_CHANGE=1 before

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
DRY_RUN=${DRY_RUN:-0}
LOG=${LOG:-}   # where `step` sends the output of its command; empty: to the terminal
ARGS=()
EXTRA=()
CHANGE=()
MADE=""
export DRY_RUN

# find_python: PYTHON as given, else the active virtual environment, else .venv, else the first python3.
# Not exported, so that a script started after setup.sh made .venv finds it; call it again to find it here.
GIVEN_PYTHON=${PYTHON:-}
find_python() {
  if [ -n "$GIVEN_PYTHON" ]; then
    PYTHON=$GIVEN_PYTHON
    case $PYTHON in
      /*) ;;
      */*) PYTHON=$PWD/$PYTHON ;; # scripts change the directory
    esac
  elif [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
    PYTHON=$VIRTUAL_ENV/bin/python
  elif [ -x "$ROOT/.venv/bin/python" ]; then
    PYTHON=$ROOT/.venv/bin/python
  else
    PYTHON=python3
  fi
}
find_python

# die MESSAGE: one line to stderr, exit 1.
die() {
  printf '%s: error: %s\n' "$(basename "$SCRIPT")" "$*" >&2
  exit 1
}

# show_help: the comment at the head of the calling script; where that ends in "All knobs are variables:", the knobs
# as they stand in the script, behind those of a file that it sources besides this one.
show_help() {
  awk -v folder="$(dirname "$SCRIPT")" '
       function knob(text)   { if (text ~ /^[A-Z0-9_]+=\$\{[A-Z0-9_]+:-.*#|^# [A-Z_]+<[A-Z]+>/) print "  " text }
       NR == 1 && /^#!/      { next }
       /^# shellcheck /      { if (/source=/ && !/source=lib.sh/) {
                                 sub(/.*source=/, "")
                                 while ((getline line < (folder "/" $0)) > 0) knob(line)
                               }
                               next }
       !body && /^#/         { sub(/^# ?/, ""); print; last = $0; next }
       last !~ /All knobs are variables.*:$/ { exit }
                             { body = 1; knob($0) }' "$SCRIPT"
}

# parse_args "$@": --help, --dry-run, ARGS, and EXTRA after `--`. Any other option is an error.
# shellcheck disable=SC2034  # EXTRA and MADE are for the script that sources this file
parse_args() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) show_help; exit 0 ;;
      --dry-run) DRY_RUN=1 ;;
      --redo | --extend) [ "${TAKES_CHANGE:-0}" = 1 ] || die "unknown option '$1'; see $(basename "$SCRIPT") --help"
                         CHANGE=("$1") ;;
      --tiny | --small) case " ${TAKES_MADE:-} " in
                          *" ${1#--} "*) MADE=${1#--} ;;
                          *) die "unknown option '$1'; see $(basename "$SCRIPT") --help" ;;
                        esac ;;
      --) shift; EXTRA=("$@"); break ;;
      -*) die "unknown option '$1'; see $(basename "$SCRIPT") --help (flags of fairseq-train go after --)" ;;
      *) ARGS+=("$1") ;;
    esac
    shift
  done
}

# refuse_variables "NAME USE"...: an error where one of these variables is set, which a script would ignore.
refuse_variables() {
  local pair name
  for pair in "$@"; do
    name=${pair%% *}
    [ -z "${!name:-}" ] || die "$name=${!name} would be ignored: this script has no such variable. ${pair#* }."
  done
}

# refuse_prefixes "PREFIX USE"...: the same where the name of any variable begins like this.
refuse_prefixes() {
  local pair name
  for pair in "$@"; do
    for name in $(compgen -v "${pair%% *}"); do refuse_variables "$name ${pair#* }"; done
  done
}

# run CMD...: run it, or print it (quoted, ready to paste) under --dry-run.
run() {
  if [ "$DRY_RUN" = 1 ]; then
    local word line=
    for word in "$@"; do
      printf -v word %q "$word"
      line+=" $word"
    done
    printf '%s\n' "${line# }"
  else
    "$@"
  fi
}

# step TEXT CMD...: run CMD (a command or a function, in a subshell with `set -e`) and print one line
# with TEXT and its seconds. With LOG set its output goes there, and the end of it is shown on failure.
# Under --dry-run a command is printed; a function is called, so it does what changes things through `run`.
step() {
  local text=$1 start=$SECONDS status=0 before
  shift
  if [ "$DRY_RUN" = 1 ]; then
    printf '# %s\n' "$text"
    if declare -F "$1" >/dev/null; then "$@"; else run "$@"; fi
    return
  fi
  if [ -n "$LOG" ]; then
    printf '%-68s' "$text"
    before=$(wc -l <"$LOG" 2>/dev/null || echo 0)
    set +e; (set -e; "$@") </dev/null >>"$LOG" 2>&1; status=$?; set -e
    if [ $status -ne 0 ]; then
      printf ' failed after %d s\n' $((SECONDS - start))
      tail -n "+$((before + 1))" "$LOG" | tail -n 30 >&2
      die "'$text' failed with status $status; all of its output: $LOG"
    fi
    printf ' %4d s\n' $((SECONDS - start))
  else
    set +e; (set -e; "$@"); status=$?; set -e
    [ $status -eq 0 ] || die "'$text' failed with status $status after $((SECONDS - start)) s"
    printf '%-68s %4d s\n' "$text" $((SECONDS - start))
  fi
}

# fairseq_cli NAME ARGS...: fairseq's command, for example `fairseq_cli train ...`, without the PATH.
fairseq_cli() {
  local name=$1
  shift
  run "$PYTHON" -m "fairseq_cli.$name" "$@"
}

# peft_cli VERB ARGS...: `fairseq-peft VERB ...`, installed or not.
peft_cli() {
  run env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m fairseq_peft.cli "$@"
}

# exec_peft_cli VERB ARGS...: the same in place of this script, also under --dry-run, which the verb knows itself.
exec_peft_cli() {
  exec env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m fairseq_peft.cli "$@"
}

# hf_packages: the site-packages folder with what PYTHON lacks of the extra hf, that of .venv-peft; nothing where it has
# all. An error, but not under --dry-run, where neither has it.
hf_packages() {
  local has='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("transformers", "accelerate", "peft"))))'
  if "$PYTHON" -c "$has"; then
    return
  elif [ -x "$ROOT/.venv-peft/bin/python" ]; then
    "$ROOT/.venv-peft/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
  elif [ "$DRY_RUN" != 1 ]; then
    die "Hugging Face's Trainer needs transformers, accelerate and peft, and $PYTHON lacks some. Install them: EXTRAS=dev,hf bash scripts/setup.sh"
  fi
}

# experiment NAME FLAGS...: experiments/NAME.py, with the knobs that all of them have.
experiment() {
  # shellcheck disable=SC2206  # seeds are words
  local flags=(--out "$OUT" --seeds $SEEDS --jobs "$JOBS")
  [ -z "$EPOCHS" ] || flags+=(--epochs "$EPOCHS")
  [ -z "$MADE" ] || flags+=("--$MADE")
  [ "$DRY_RUN" = 0 ] || flags+=(--dry-run)
  [ -z "$MODEL" ] || flags+=(--model "$MODEL")
  [ -z "$DATA" ] || flags+=(--data "$DATA")
  exec "$PYTHON" "$ROOT/experiments/$1.py" "${flags[@]}" "${@:2}" -- ${EXTRA[@]+"${EXTRA[@]}"}
}
