#!/usr/bin/env bash
# Measure training, prediction, many adapters on one base, or a GPU: stock fairseq, this plugin, and Hugging Face, side by side.
#
# Usage: benchmark.sh [--dry-run] [train|predict|adapters|gpu] [-- FLAGS OF benchmarks/{train_speed,predict_speed,many_adapters,gpu}.py]
#
#   bash scripts/benchmark.sh                       training: 14 processes a repeat, minutes
#   REPEATS=1 STEPS=10 bash scripts/benchmark.sh train -- --only 'stock-*,ours-lora-*'
#   bash scripts/benchmark.sh -- --variant 'rank64=lora bf16 --lora-rank 64'
#   bash scripts/benchmark.sh predict               from raw text to labels: 14 processes a repeat
#   TEXTS=2000 bash scripts/benchmark.sh predict -- --only 'ours-*,hf-bf16-*'
#   bash scripts/benchmark.sh adapters              1 to 1,000 LoRA adapters: 16 processes a repeat; 5 GB on the disk
#   TEXTS=300 bash scripts/benchmark.sh adapters -- --adapters 1,100 --only 'ours-*,hf-*'
#   REPEATS=2 bash scripts/benchmark.sh gpu         every goal for a GPU in one table; meant to take five minutes
#   bash scripts/benchmark.sh gpu -- --device cpu --tiny --steps 2      tries the program where there is no GPU
#
# Prints the tables and leaves {train_speed,predict_speed,many_adapters,gpu}.json, train_speed.png and logs/ in OUT. Close other programs:
# with fewer cores free than THREADS the figures say nothing. Hugging Face's part needs .venv-peft, which
# `scripts/test.sh parity` makes; without it, these lines are left out, and the output says so.
# All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"

OUT=${OUT:-$ROOT/runs/benchmark}  # where the results land
REPEATS=${REPEATS:-3}             # times that every contestant runs, in turn
THREADS=${THREADS:-$(nproc)}      # CPU threads of each contestant
DEVICE=${DEVICE:-cpu}             # cpu, or cuda (untested)
STEPS=${STEPS:-40}                # train: steps on the clock
BATCH_SIZE=${BATCH_SIZE:-8}       # train: rows a step
DATA=${DATA:-}                    # train: folder of prepare_data.sh; empty: random words, with the lengths of reviews
TEXTS=${TEXTS:-500}               # predict, adapters: texts on the clock

[ ${#ARGS[@]} -le 1 ] || die "'${ARGS[*]}': give one of train, predict, adapters and gpu (flags of the benchmark go after --)"
[ -z "$DATA" ] || [ -f "$DATA/input0/train.idx" ] ||
  die "$DATA/input0/train.idx does not exist. Make the folder with scripts/prepare_data.sh."

what=${ARGS[0]:-train}
case $what in
  train)            FLAGS=(--steps "$STEPS" --batch-size "$BATCH_SIZE" ${DATA:+--data "$DATA"}) ;;
  predict|adapters) FLAGS=(--texts "$TEXTS") ;;
  gpu)              FLAGS=() DEVICE=cuda ;;
  *)                die "'$what' is unknown: give train, predict, adapters or gpu (flags of the benchmark go after --)" ;;
esac
program=${what}_speed
[ "$what" != adapters ] || program=many_adapters
[ "$what" != gpu ] || program=gpu
run "$PYTHON" "$ROOT/benchmarks/$program.py" --out "$OUT" --repeats "$REPEATS" --threads "$THREADS" \
  --device "$DEVICE" ${FLAGS[@]+"${FLAGS[@]}"} ${EXTRA[@]+"${EXTRA[@]}"}
