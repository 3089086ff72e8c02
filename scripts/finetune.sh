#!/usr/bin/env bash
# Fine-tune one model: one method, one start, one seed.
#
# Usage: finetune.sh [--dry-run] [--redo | --extend] [-- FLAGS OF fairseq-train]
#
#   BASE=model.pt METHOD=lora SEED=1 bash scripts/finetune.sh
#   INIT=scratch METHOD=full LR=1e-4 bash scripts/finetune.sh -- --dropout 0.2
#   BASE=model.pt METHOD=lora+prefix bash scripts/finetune.sh
#   BASE=model.pt METHOD=lora LABEL=pissa bash scripts/finetune.sh -- --lora-init pissa
#
# The run lands in RUNS/<data>/INIT/LABEL/seed<SEED>/: plan.json, run.json, metrics.jsonl, train.log, TensorBoard
# events, checkpoint_best.pt (chosen on valid), and result.json when it is done. A run that is done is skipped; one
# that was interrupted goes on from its last epoch. A folder that holds a run of another plan (data, base, knobs or
# flags) is refused, with what differs: --redo throws that run away, --extend goes on with it for more EPOCHS, where
# its schedule has no end (-- --lr-scheduler fixed). This is fairseq-peft finetune. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TAKES_CHANGE=1
parse_args "$@"
# shellcheck source=finetune_lib.sh
. "$ROOT/scripts/finetune_lib.sh"

SEED=${SEED:-1}                         # seed of head, method, batches and dropout
LR=${LR:-1e-4}                          # peak learning rate
METHOD=${METHOD:-full}                  # a method (fairseq-peft methods lists them), or several with + between
LABEL=${LABEL:-$METHOD}                 # what the run is called in reports
INIT=${INIT:-pretrained}                # pretrained (from BASE) or scratch
BASE=${BASE:-}                          # checkpoint, or folder of Hugging Face's, to start from, for INIT=pretrained
LABELS=${LABELS:-}                     # of a base of Hugging Face's: the answers that there are, with commas (any text)
SIZE=${SIZE:-auto}                      # auto (BASE's, and roberta_small from scratch), roberta_small, _base or _large
ARCH_ARGS=${ARCH_ARGS:-}                # more flags of the architecture, e.g. "--encoder-layers 2"
METRIC=${METRIC:-}                      # chooses the checkpoint: accuracy (default), macro_f1, mcc, loss, f1_<class>;
#                                         of labels micro_f1 (default), of numbers pearson (default), spearman, mse; of texts
#                                         loss (default), rouge1, rouge2, rougeL
EVAL_TEST=${EVAL_TEST:-each}            # each epoch, or best: test is evaluated once, with the best weights
PATIENCE=${PATIENCE:-0}                 # end after so many epochs without a better one; 0: never
CLASS_WEIGHTS=${CLASS_WEIGHTS:-none}    # none, balanced, or one number a class with commas
WAIT=${WAIT:-0}                         # 1: wait while another process has the run
WORKER=${WORKER:-none}                  # none, or where a worker listens that spares the imports: fairseq-peft worker

refuse_variables "METHODS Say METHOD" "SEEDS Say SEED, or use sweep.sh" "CELLS Say INIT and METHOD, or use sweep.sh" \
  "EPOCH Say EPOCHS" "RATE Say LR" "BATCH Say BATCH_SIZE" "METRICS Say METRIC"
refuse_prefixes "LR_ Say LR, or use sweep.sh" "FLAGS_ Give flags behind --, or use sweep.sh"
case $INIT in
  pretrained) [ -n "$BASE" ] || die "INIT=pretrained needs BASE, a checkpoint. Set BASE=model.pt, or INIT=scratch."
              START=(--base "$BASE") ;;
  scratch)    START=(--from-scratch) ;;
  *)          die "INIT=$INIT is unknown: set INIT=pretrained or INIT=scratch." ;;
esac
[ "$WORKER" = none ] || START+=(--worker "$WORKER")
[ "$WAIT" = 0 ] || START+=(--wait)

exec_peft_cli finetune "${RUN_KNOBS[@]}" "${START[@]}" --method "$METHOD" --label "$LABEL" --size "$SIZE" \
  --arch-args=" $ARCH_ARGS" --seed "$SEED" --lr "$LR" --metric "$METRIC" --labels "$LABELS" \
  --eval-test "$EVAL_TEST" --patience "$PATIENCE" \
  --class-weights "$CLASS_WEIGHTS" -- ${EXTRA[@]+"${EXTRA[@]}"}
