#!/usr/bin/env bash
# Fine-tune one model: one method, one start, one seed.
#
# Usage: finetune.sh [--dry-run] [-- FLAGS OF fairseq-train]
#
#   BASE=model.pt METHOD=lora SEED=1 bash scripts/finetune.sh
#   INIT=scratch METHOD=full LR=1e-4 bash scripts/finetune.sh -- --dropout 0.2
#   BASE=model.pt METHOD=lora+prefix bash scripts/finetune.sh
#   BASE=model.pt METHOD=lora LABEL=pissa bash scripts/finetune.sh -- --lora-init pissa
#
# The run lands in RUNS/<data>/INIT/LABEL/seed<SEED>/: run.json, metrics.jsonl, train.log, TensorBoard events,
# checkpoint_best.pt (chosen on valid), and result.json when it is done. A run that is done is skipped; one that
# was interrupted goes on from its last epoch. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
# shellcheck source=finetune_lib.sh
. "$ROOT/scripts/finetune_lib.sh"

METHOD=${METHOD:-full}                  # a method (fairseq-peft methods lists them), or several with + between
LABEL=${LABEL:-$METHOD}                 # what the run is called in reports
INIT=${INIT:-pretrained}                # pretrained (from BASE) or scratch
BASE=${BASE:-}                          # checkpoint to start from, for INIT=pretrained
SIZE=${SIZE:-roberta_small}             # roberta_small, roberta_base or roberta_large
ARCH_ARGS=${ARCH_ARGS:-}                # more flags of the architecture, e.g. "--encoder-layers 2"
STEP=${STEP:-all}                       # all, or finish: the result of a run that fairseq-peft sweep-members has trained
WORKER=${WORKER:-none}                  # none, or where a worker listens that spares the imports: fairseq-peft worker

case $INIT in
  pretrained) [ -n "$BASE" ] || die "INIT=pretrained needs BASE, a checkpoint. Set BASE=model.pt, or INIT=scratch."
              START=(--finetune-from-model "$BASE") ;;
  scratch)    START=(--from-scratch) ;;
  *)          die "INIT=$INIT is unknown: set INIT=pretrained or INIT=scratch." ;;
esac
case $STEP in all | finish) ;; *) die "STEP=$STEP is unknown: set STEP=all or STEP=finish." ;; esac
begin_run "$INIT" "$LABEL"

# The index of the labels holds the number of rows behind its 18-byte header.
ROWS=$(od -An -t d8 -j 18 -N 8 "$DATA/label/train.idx" | tr -d ' ')
BATCHES=$(((ROWS + BATCH_SIZE - 1) / BATCH_SIZE))
UPDATES=$((BATCHES * EPOCHS))
read -ra ARCH_FLAGS <<<"$ARCH_ARGS"
case $METHOD in
  *[+,]*) ARCH=(--arch "$SIZE" --peft "$METHOD") ;;
  *)      ARCH=(--arch "${SIZE}_$METHOD") ;;
esac
[ "$LABEL" = "$METHOD" ] || ARCH+=(--method-label "$LABEL")

fairseq_train() {  # a process of its own, or a child of the worker: the same result
  if [ "$WORKER" = none ] || [ "$DRY_RUN" = 1 ]; then
    fairseq_cli train "$@"
  else
    peft_cli worker "$WORKER" train "$@"
  fi
}

train() {
  fairseq_train "$DATA" --user-dir "$ROOT/fairseq_peft" \
    "${ARCH[@]}" --task sentence_classification --criterion sentence_classification "${START[@]}" \
    --optimizer peft_adamw --lr "$LR" --lr-scheduler polynomial_decay \
    --warmup-updates $((UPDATES * WARMUP / 100)) --total-num-update "$UPDATES" --clip-norm 1.0 \
    --max-epoch "$EPOCHS" --batch-size "$BATCH_SIZE" --seed "$SEED" --precision "$PRECISION" \
    --valid-subset "$SUBSETS" --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric \
    --no-epoch-checkpoints --save-dir "$RUN" --num-workers 0 --log-format simple --log-interval 50 \
    ${ARCH_FLAGS[@]+"${ARCH_FLAGS[@]}"} ${EXTRA[@]+"${EXTRA[@]}"}
}

if [ "$STEP" = finish ] && [ "$DRY_RUN" = 0 ]; then train_run true; else train_run train; fi
[ "$DRY_RUN" = 0 ] || exit 0
rm -f "$RUN/checkpoint_last.pt"
[ "$KEEP" = best ] || rm -f "$RUN/checkpoint_best.pt"
