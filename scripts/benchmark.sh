#!/usr/bin/env bash
# Measure training: stock fairseq-train, this plugin, and Hugging Face's Trainer with PEFT, side by side.
#
# Usage: benchmark.sh [--dry-run] [-- FLAGS OF benchmarks/train_speed.py]
#
#   bash scripts/benchmark.sh                       everything: 14 processes a repeat, minutes
#   REPEATS=1 STEPS=10 bash scripts/benchmark.sh -- --only 'stock-*,ours-lora-*'
#   bash scripts/benchmark.sh -- --variant 'rank64=lora bf16 --lora-rank 64'
#
# Prints the tables and leaves train_speed.json, train_speed.png and logs/ in OUT. Close other programs: with
# fewer cores free than THREADS the figures say nothing. Hugging Face's part needs .venv-peft, which
# `scripts/test.sh parity` makes; without it, these lines are left out, and the output says so.
# All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"

OUT=${OUT:-$ROOT/runs/benchmark}  # where the results land
REPEATS=${REPEATS:-3}             # times that every contestant runs, in turn
STEPS=${STEPS:-40}                # steps on the clock
BATCH_SIZE=${BATCH_SIZE:-8}       # rows a step
THREADS=${THREADS:-$(nproc)}      # CPU threads of each contestant
DEVICE=${DEVICE:-cpu}             # cpu, or cuda (untested)
DATA=${DATA:-}                    # folder of prepare_data.sh; empty: random words, with the lengths of reviews

[ ${#ARGS[@]} = 0 ] || die "'${ARGS[*]}' is unknown (flags of train_speed.py go after --)"
[ -z "$DATA" ] || [ -f "$DATA/input0/train.idx" ] ||
  die "$DATA/input0/train.idx does not exist. Make the folder with scripts/prepare_data.sh."

run "$PYTHON" "$ROOT/benchmarks/train_speed.py" --out "$OUT" --repeats "$REPEATS" --steps "$STEPS" \
  --batch-size "$BATCH_SIZE" --threads "$THREADS" --device "$DEVICE" ${DATA:+--data "$DATA"} \
  ${EXTRA[@]+"${EXTRA[@]}"}
