#!/usr/bin/env bash
# GPT-2 for summaries: prompt tuning from `[SUMMARIZE]`, the last block with the tied output embedding, and LoRA.
#
# Usage: gpt2_summarization.sh [--dry-run] [--tiny] [-- FLAGS OF fairseq-train]
#
#   bash scripts/gpt2_summarization.sh --tiny                        # two cores, minutes: a small GPT-2, made here first
#   MODEL=gpt2/ DATA=cnn_dailymail/ bash scripts/gpt2_summarization.sh
#
# --tiny pre-trains a small GPT-2 on the articles of train; each row then writes titles. DATA is a folder with
# {train,valid,test}.jsonl, .tsv or .csv: an article and its highlights, summary, abstract or title a row. A fourth row
# counts the prompt and the padding in the loss, and shows what that costs. What is done is kept. Leaves table.md and
# table.json in OUT. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TAKES_MADE=tiny
parse_args "$@"
[ "${#ARGS[@]}" = 0 ] || die "takes no arguments; see --help"

MODEL=${MODEL:-}                            # folder of GPT-2 small: config.json, model.safetensors, tokenizer.json
DATA=${DATA:-}                              # the news; empty: data/orangesum of FAIRSEQ_PEFT_SHARED
TARGET=${TARGET:-}                          # column of the summary; empty: title with --tiny, else the first there is
OUT=${OUT:-$ROOT/runs/gpt2_summarization}   # where everything lands
SEEDS=${SEEDS:-1 2 3}                       # one run a row and seed
EPOCHS=${EPOCHS:-}                          # passes over train; empty: those of the setting
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}  # runs at once, a core each

FLAGS=()
[ -z "$TARGET" ] || FLAGS+=(--target "$TARGET")
experiment gpt2_summarization ${FLAGS[@]+"${FLAGS[@]}"}
