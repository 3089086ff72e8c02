#!/usr/bin/env bash
# The report: all finished runs below RUNS -> table, statistics, pictures.
#
# Usage: scripts/compare.sh [--dry-run] [RUNS]
#
# RUNS   the folder that holds <data>/<init>/<method>/seed<k>/result.json (default: runs of this project)
#
# Prints the tables and writes report.{txt,md,csv,json}, report-classes.csv and pictures (PNG, SVG) to OUT. With RAW it
# first runs the baseline, TF-IDF and logistic regression tuned on valid, unless its result is there:
# seconds, and a table without it fools its reader. Unfinished runs are listed below the table.
#
# Knobs:
#   RAW                what prepare_data.sh was given: a folder or a file (empty: no new baseline)
#   NAME               the data set's name among the runs (default: the name of RAW, as there)
#   TEXT_COLUMN, TEXT2_COLUMN, LABEL_COLUMN, HEADER   of a table, as prepare_data.sh had them
#   SEED, VALID_SHARE, TEST_SHARE   the same, for a file without a split column
#   KIND, LABEL_SEPARATOR   what a row has, and what stands between its labels, as prepare_data.sh had them
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
TEXT_COLUMN=${TEXT_COLUMN:-}           # column of the text
TEXT2_COLUMN=${TEXT2_COLUMN:-}         # column of the second text
LABEL_COLUMN=${LABEL_COLUMN:-}         # column of the class
HEADER=${HEADER:-}                     # 1 or 0; empty: 1, unless all columns are numbers
SEED=${SEED:-}                         # of the split of a file without one
VALID_SHARE=${VALID_SHARE:-}           # the same
TEST_SHARE=${TEST_SHARE:-}             # the same
KIND=${KIND:-}                         # classes, labels or number; empty: classes
LABEL_SEPARATOR=${LABEL_SEPARATOR:-}   # between the labels of a row; empty: |
DROP_DUPLICATES=${DROP_DUPLICATES:-}   # train, or empty: keep
OUT=${OUT:-$RUNS/report}               # where the report goes

if [ -n "$RAW" ]; then
  [ -e "$RAW" ] || die "RAW='$RAW' does not exist; expected the folder or file that prepare_data.sh read"
  if [ -d "$RAW" ]; then
    NAME=${NAME:-$(basename "$(cd "$RAW" && pwd)")}
  else
    name=$(basename "$RAW")
    for format in xz gz json jsonl csv tsv; do name=${name%".$format"}; done
    NAME=${NAME:-$name}
  fi
  options=()
  [ -z "$TEXT_COLUMN" ] || options+=(--text-column "$TEXT_COLUMN")
  [ -z "$TEXT2_COLUMN" ] || options+=(--text2-column "$TEXT2_COLUMN")
  [ -z "$LABEL_COLUMN" ] || options+=(--label-column "$LABEL_COLUMN")
  case $HEADER in
    '') ;;
    0) options+=(--no-header) ;;
    1) options+=(--header) ;;
    *) die "HEADER=$HEADER: expected 0 or 1" ;;
  esac
  [ -z "$SEED" ] || options+=(--seed "$SEED")
  [ -z "$VALID_SHARE" ] || options+=(--valid-share "$VALID_SHARE")
  [ -z "$TEST_SHARE" ] || options+=(--test-share "$TEST_SHARE")
  [ -z "$KIND" ] || options+=(--kind "$KIND")
  [ -z "$LABEL_SEPARATOR" ] || options+=(--label-separator "$LABEL_SEPARATOR")
  [ -z "$DROP_DUPLICATES" ] || options+=(--drop-duplicates "$DROP_DUPLICATES")
  if [ -e "$RUNS/$NAME/baseline/tfidf/seed1/result.json" ]; then
    echo "the baseline of $NAME is there; delete $RUNS/$NAME/baseline to run it again" >&2
  else
    peft_cli tfidf "$RAW" --runs "$RUNS" --name "$NAME" "${options[@]+"${options[@]}"}"
  fi
elif [ -n "$NAME$KIND$LABEL_SEPARATOR$DROP_DUPLICATES$SEED$VALID_SHARE$TEST_SHARE$TEXT_COLUMN$TEXT2_COLUMN$LABEL_COLUMN$HEADER" ]; then
  die "NAME, KIND, LABEL_SEPARATOR, DROP_DUPLICATES, SEED, shares and columns are for the baseline and do nothing without RAW"
fi
peft_cli report "$RUNS" --out "$OUT"
