#!/usr/bin/env bash
# LoRA on BLOOM, from instructions to answers: the curve of its training loss, in TensorBoard and as a picture.
#
# Usage: bloom_instructions.sh [--dry-run] [--tiny] [-- FLAGS OF fairseq-train]
#
#   bash scripts/bloom_instructions.sh --tiny                     # two cores, a minute or two; needs no data
#   MODEL=bloom-560m/ DATA=alpaca.jsonl bash scripts/bloom_instructions.sh
#
# --tiny pre-trains a small BLOOM on plain sentences that are made up, then LoRA teaches it to answer questions about
# such. DATA is JSON lines with instruction, input and output; without, questions and answers are generated. What is done
# is kept. Leaves tensorboard/, loss.png, loss.svg, table.md and table.json in OUT. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TAKES_MADE=tiny
parse_args "$@"
[ "${#ARGS[@]}" = 0 ] || die "takes no arguments; see --help"

MODEL=${MODEL:-}                            # folder of BLOOM-560m: config.json, model.safetensors, tokenizer.json
DATA=${DATA:-}                              # instructions; empty: generated
OUT=${OUT:-$ROOT/runs/bloom_instructions}   # where everything lands
SEEDS=${SEEDS:-1 2 3}                       # one run each
EPOCHS=${EPOCHS:-}                          # passes over train; empty: those of the setting
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}  # runs at once, a core each

experiment bloom_instructions
