#!/usr/bin/env bash
# Usage: scripts/test.sh [--dry-run] [fast] [-- FLAGS OF pytest]
#
# The linters (ruff, its formatter, shellcheck), then the tests. `fast` leaves out those that run real
# command lines for minutes. Works offline and on the CPU; `scripts/setup.sh` installs what it needs.
#   scripts/test.sh fast -- -k lora
#
# Knobs (environment variables):
#   FAIRSEQ_PEFT_SHARED=   a folder with data/cls-books and models/; tests that need it are skipped without
#   PYTHON=                the Python to test with, default that of the active environment, else .venv
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"

SELECT=()
case ${ARGS[*]+"${ARGS[*]}"} in
  '') ;;
  fast) SELECT=(-m "not end_to_end") ;;
  *) die "'${ARGS[*]}' is unknown; known is fast (flags of pytest go after --)" ;;
esac

cd "$ROOT"
for module in pytest ruff; do
  "$PYTHON" -m "$module" --version >/dev/null 2>&1 ||
    die "$module is not installed for $PYTHON; run scripts/setup.sh first"
done
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
STATUS=0
run "$PYTHON" -m pytest ${SELECT[@]+"${SELECT[@]}"} ${EXTRA[@]+"${EXTRA[@]}"} || STATUS=$?
if [ "${#FAILED[@]}" -gt 0 ]; then
  printf 'test.sh: failed: %s\n' "${FAILED[@]}" >&2
  [ $STATUS -ne 0 ] || STATUS=1
fi
exit $STATUS
