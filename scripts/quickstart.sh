#!/usr/bin/env bash
# From nothing to the comparison: install, make data, pre-train, fine-tune 18 times, report.
#
# Usage: scripts/quickstart.sh [--dry-run]
#
# Pre-training against training from scratch, and full fine-tuning against the head alone, LoRA, adapters and
# soft prompts, three seeds each, on reviews that the project makes itself: no download but the packages. The
# models are tiny, so that all of it takes minutes on 2 cores. Safe to run again: what is done is kept.
# Everything but .venv lands in WORK.
#
# Knobs (environment variables):
#   WORK=quickstart    folder for data, checkpoints, runs and report
#   JOBS=              runs at once, one core each (default: the number of cores)
#   SEEDS="1 2 3"      one run a method, start and seed
#   EPOCHS=12          of fine-tuning
#   SETUP=1            0: use the installed packages as they are
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#ARGS[@]}" = 0 ] && [ "${#EXTRA[@]}" = 0 ] || die "takes no arguments; see --help"

WORK=${WORK:-$ROOT/quickstart}              # where everything lands
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}  # runs at once
SEEDS=${SEEDS:-1 2 3}                       # seeds
EPOCHS=${EPOCHS:-12}                        # passes over train
SETUP=${SETUP:-1}                           # 1: install first
TINY="--encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 --max-positions 64"

[ "$SETUP" = 0 ] || run bash "$ROOT/scripts/setup.sh"
find_python
started=$SECONDS
headline() { printf '\n== %s\n' "$1"; }

headline "Data: short reviews, most of them without a label"
if [ ! -e "$WORK/raw/test.label" ]; then
  run mkdir -p "$WORK"
  peft_cli make-demo-data "$WORK/raw"
fi

headline "Pre-training on the reviews without labels"
if [ ! -e "$WORK/base/model.pt" ]; then
  run env RAW="$WORK/raw/unlabelled.txt" SAVE_DIR="$WORK/base" VOCAB_SIZE=260 ARCH_ARGS="$TINY" TOKENS_SHORT=64 THREADS="$JOBS" \
    UPDATES_SHORT=2500 UPDATES_LONG=0 TOKENS_PER_UPDATE=2048 LR=1e-3 WARMUP=100 VALID_EVERY=500 SAVE_EVERY=500 \
    bash "$ROOT/scripts/pretrain.sh" -- --sample-break-mode eos
fi

headline "Labelled reviews, binarised"
run env SPM="$WORK/base/sentencepiece.bpe.model" DICT="$WORK/base/dict.txt" DATA_BIN="$WORK/data-bin" \
  MAX_POSITIONS=64 bash "$ROOT/scripts/prepare_data.sh" "$WORK/raw" demo

headline "Fine-tuning: {scratch, pretrained} x full, pretrained x {head_only, lora, adapter, prompt}"
run env DATA="$WORK/data-bin/demo" RUNS="$WORK/runs" BASE="$WORK/base/model.pt" SEEDS="$SEEDS" JOBS="$JOBS" \
  THREADS=1 EPOCHS="$EPOCHS" ARCH_ARGS="$TINY" EVERY=8 LR_SCRATCH=5e-4 LR_FULL=5e-4 LR_HEAD_ONLY=3e-3 \
  LR_LORA=5e-3 LR_ADAPTER=3e-3 LR_PROMPT=1e-2 bash "$ROOT/scripts/sweep.sh"

headline "Report"
run env RAW="$WORK/raw" NAME=demo bash "$ROOT/scripts/compare.sh" "$WORK/runs"
if [ "$DRY_RUN" != 1 ]; then
  printf '\nDone in %d s after the installation. Next: tensorboard --logdir %s\n' \
    $((SECONDS - started)) "$WORK/runs"
fi
