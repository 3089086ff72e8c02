#!/usr/bin/env bash
# The report: all finished runs below RUNS -> table, statistics, pictures.
#
# Usage: scripts/compare.sh [--dry-run] [RUNS]
#
# RUNS   the folder that holds <data>/<init>/<method>/seed<k>/result.json (default: runs of this project)
#
# Prints the table and writes report.{txt,md,csv,json} and the pictures (PNG, SVG) to OUT. With RAW it
# first runs the baseline, TF-IDF and logistic regression tuned on valid, unless its result is there:
# seconds, and a table without it fools its reader. Unfinished runs are listed below the table.
#
# Knobs:
#   RAW                folder with {train,valid,test}.{review,label} (empty: no new baseline)
#   NAME               the data set's name among the runs (default: the name of RAW)
#   DROP_DUPLICATES    `train` if prepare_data.sh ran with it: the baseline then sees the same rows
#   OUT                folder of the report (default: RUNS/report)
#
# Example:
#   RAW=../shared/data/cls-books scripts/compare.sh runs
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#ARGS[@]}" -le 1 ] && [ "${#EXTRA[@]}" = 0 ] || die "takes one argument, RUNS; see --help"

RUNS=${ARGS[0]:-$ROOT/runs}            # where the runs are
RAW=${RAW:-}                           # raw data of the baseline; empty: no new baseline
NAME=${NAME:-}                         # its name among the runs; empty: the name of RAW
DROP_DUPLICATES=${DROP_DUPLICATES:-}   # train, or empty: keep
OUT=${OUT:-$RUNS/report}               # where the report goes

if [ -n "$RAW" ]; then
  [ -d "$RAW" ] || die "RAW='$RAW' is not a folder; expected one with train.review and so on"
  NAME=${NAME:-$(basename "$(cd "$RAW" && pwd)")}
  options=()
  [ -z "$DROP_DUPLICATES" ] || options=(--drop-duplicates "$DROP_DUPLICATES")
  if [ -e "$RUNS/$NAME/baseline/tfidf/seed1/result.json" ]; then
    echo "the baseline of $NAME is there; delete $RUNS/$NAME/baseline to run it again" >&2
  else
    peft_cli tfidf "$RAW" --runs "$RUNS" --name "$NAME" "${options[@]+"${options[@]}"}"
  fi
elif [ -n "$NAME$DROP_DUPLICATES" ]; then
  die "NAME and DROP_DUPLICATES are for the baseline and do nothing without RAW"
fi
peft_cli report "$RUNS" --out "$OUT"
