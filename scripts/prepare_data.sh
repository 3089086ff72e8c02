#!/usr/bin/env bash
# Raw text and labels -> pieces -> fairseq-preprocess -> data-bin/NAME.
#
# Usage: scripts/prepare_data.sh [--dry-run] RAW [NAME]
#
# RAW   a directory with {train,valid,test}.{review,label}, a text or a label a line (test may be
#       absent; *.review2 for pairs), or with {train,valid,test}.{tsv,csv,jsonl,json}, or one such
#       table with text, label[, text2][, split]. Files may be packed (.gz, .xz).
# NAME  default: the name of RAW
#
# Reports rows, classes, token lengths, unknown tokens and texts that occur in two splits; refuses
# undecodable bytes, empty lines and counts that differ, by file and line. data-bin/NAME appears when
# everything is done and checked; running again on it does nothing.
#
# Knobs (empty = the default of `fairseq-peft prepare-data`):
#   TEXT_COLUMN, TEXT2_COLUMN, LABEL_COLUMN   of a table: names, or numbers from 1 on
#   HEADER             1: the first line of a table names its columns, 0: it is a row
#   SPM, DICT          sentencepiece model of a checkpoint, and its dict.txt (without: train one)
#   BPE, BPE_DIR       or another way to cut text: gpt2, subword_nmt, fastbpe, bert or none (tokens with
#                      spaces between them), and the folder with its files and dict.txt (docs/checkpoints.md)
#   BPE_CASED=1        with BPE=bert: case and accents count
#   VOCAB_SIZE         train one of so many pieces, two less than embedding rows (default 7998)
#   SPM_TEXT           ... on this text file, a text a line (default: the texts of train)
#   KIND               what a row has: classes (one, the default), labels (any number of them, a|b), or number
#   LABEL_SEPARATOR    between the labels of a row (|)
#   DROP_DUPLICATES    `train`: drop the rows of train whose text valid or test has, too
#   MAX_POSITIONS      positions of the model, for the share that is cut (default 256)
#   SEED, VALID_SHARE, TEST_SHARE   split a file that has no split column (defaults 1, 0.1, 0.1)
#   FORCE=1            replace a finished data-bin/NAME
#   DATA_BIN           where NAME goes (default: data-bin of this project)
#
# Examples:
#   M=../shared/models/roberta_small_fr
#   SPM=$M/sentencepiece.bpe.model DICT=$M/dict.txt scripts/prepare_data.sh ../shared/data/cls-books
#   BPE=gpt2 BPE_DIR=roberta.base scripts/prepare_data.sh my-reviews
#   VOCAB_SIZE=598 SPM_TEXT=demo-data/unlabelled.txt scripts/prepare_data.sh demo-data demo
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TEXT_COLUMN=${TEXT_COLUMN:-}           # column of the text
TEXT2_COLUMN=${TEXT2_COLUMN:-}         # of the second text of pairs
LABEL_COLUMN=${LABEL_COLUMN:-}         # of the class
HEADER=${HEADER:-}                     # 1 or 0; empty: 1, unless all columns are numbers
SPM=${SPM:-}                           # sentencepiece model; empty: train one
DICT=${DICT:-}                         # its dict.txt; empty: pieces in the order of the model
BPE=${BPE:-}                           # as fairseq's --bpe; empty: sentencepiece
BPE_DIR=${BPE_DIR:-}                   # folder with its files and dict.txt
BPE_CASED=${BPE_CASED:-0}              # 1: a cased BERT
VOCAB_SIZE=${VOCAB_SIZE:-}             # pieces of a model to train
SPM_TEXT=${SPM_TEXT:-}                 # text to train it on
KIND=${KIND:-}                         # what a row has: classes (one), labels (any number), or number
LABEL_SEPARATOR=${LABEL_SEPARATOR:-}   # between the labels of a row
DROP_DUPLICATES=${DROP_DUPLICATES:-}   # train, or empty: keep and report
MAX_POSITIONS=${MAX_POSITIONS:-}       # of the model
SEED=${SEED:-}                         # of the split of a file without one
VALID_SHARE=${VALID_SHARE:-}           # the same
TEST_SHARE=${TEST_SHARE:-}             # the same
FORCE=${FORCE:-0}                      # 1: replace a finished folder
DATA_BIN=${DATA_BIN:-$ROOT/data-bin}   # parent of NAME

parse_args "$@"
[ ${#EXTRA[@]} -eq 0 ] || die "nothing goes after --: this script calls no fairseq-train"
[ ${#ARGS[@]} -ge 1 ] && [ ${#ARGS[@]} -le 2 ] || die "expected RAW [NAME]; see --help"
raw=${ARGS[0]}
name=${ARGS[1]:-}
if [ -z "$name" ]; then
  name=$(basename "$raw")
  name=${name%.gz}
  name=${name%.xz}
  for suffix in .tsv .csv .jsonl .json; do name=${name%"$suffix"}; done
fi
case $name in . | .. | */*) die "'$name' is not a name for a folder in $DATA_BIN; give NAME" ;; esac
case $BPE_CASED in 0 | 1) ;; *) die "BPE_CASED=$BPE_CASED: expected 0 or 1" ;; esac
case $FORCE in 0 | 1) ;; *) die "FORCE=$FORCE: expected 0 or 1" ;; esac

options=()
option() { if [ -n "$2" ]; then options+=("$1" "$2"); fi; }
option --text-column "$TEXT_COLUMN"
option --text2-column "$TEXT2_COLUMN"
option --label-column "$LABEL_COLUMN"
case $HEADER in
  '') ;;
  0) options+=(--no-header) ;;
  1) options+=(--header) ;;
  *) die "HEADER=$HEADER: expected 0 or 1" ;;
esac
option --spm "$SPM"
option --dict "$DICT"
option --bpe "$BPE"
option --bpe-dir "$BPE_DIR"
[ "$BPE_CASED" = 0 ] || options+=(--bpe-cased)
option --vocab-size "$VOCAB_SIZE"
option --spm-text "$SPM_TEXT"
option --kind "$KIND"
option --label-separator "$LABEL_SEPARATOR"
option --drop-duplicates "$DROP_DUPLICATES"
option --max-positions "$MAX_POSITIONS"
option --seed "$SEED"
option --valid-share "$VALID_SHARE"
option --test-share "$TEST_SHARE"
[ "$FORCE" = 0 ] || options+=(--force)

peft_cli prepare-data "$raw" "$DATA_BIN/$name" "${options[@]+"${options[@]}"}"
