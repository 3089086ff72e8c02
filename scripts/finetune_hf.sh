#!/usr/bin/env bash
# Fine-tune one model with Hugging Face's Trainer, as finetune.sh does with fairseq: one method, one seed.
#
# Usage: finetune_hf.sh [--dry-run] [--redo] [-- FLAGS OF fairseq-peft finetune-hf]
#
#   BASE=model.pt METHOD=full SEED=1 bash scripts/finetune_hf.sh
#   HF_BASE=roberta_small_hf METHOD=lora LR=1e-3 bash scripts/finetune_hf.sh
#   BASE=model.pt METHOD=lora LABEL=hf-r4 bash scripts/finetune_hf.sh -- --lora-rank 4
#
# Data, splits, truncation, batches, seeds, optimizer and metrics are those of finetune.sh; the model, LoRA and the
# training loop are transformers' and PEFT's. The run lands beside fairseq's, in RUNS/<data>/pretrained/LABEL/seed<SEED>/:
# plan.json, run.json, metrics.jsonl, train.log, TensorBoard events, checkpoint_best/ (chosen on valid; a folder of the
# library's), and result.json when it is done. A run that is done is skipped; one that was interrupted starts again. A
# folder that holds a run of another plan is refused, with what differs: --redo throws that run away.
#
# It takes fairseq and the extra hf (transformers, accelerate, peft) in one environment. Where PYTHON has no transformers,
# they are taken from .venv-peft, which scripts/test.sh parity makes. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TAKES_CHANGE=1
parse_args "$@"
[ "${CHANGE[*]-}" != --extend ] || die "--extend is not for these runs, which start again. Give --redo."
# shellcheck source=finetune_lib.sh
. "$ROOT/scripts/finetune_lib.sh"

METRIC=${METRIC:-accuracy}              # chooses the epoch: accuracy, macro_f1, mcc, loss or f1_<class>
SEED=${SEED:-1}                         # seed of head, method, batches and dropout
LR=${LR:-1e-4}                          # peak learning rate
METHOD=${METHOD:-full}                  # full, or lora: PEFT's
LABEL=${LABEL:-hf-$METHOD}              # what the run is called in reports
BASE=${BASE:-}                          # checkpoint of fairseq's to start from: converted for this run
HF_BASE=${HF_BASE:-}                    # or a folder that fairseq-peft to-hf made of it
HF_PACKAGES=${HF_PACKAGES:-}            # a site-packages folder with what PYTHON lacks of the extra hf

refuse_variables "METHODS Say METHOD" "SEEDS Say SEED" "CELLS Say METHOD" "EPOCH Say EPOCHS" "BATCH Say BATCH_SIZE" \
  "PATIENCE All epochs are trained" "CLASS_WEIGHTS All classes weigh the same"
case $METHOD in full | lora) ;; *) die "METHOD=$METHOD is unknown here: set METHOD=full or METHOD=lora." ;; esac
if [ -n "$BASE" ] && [ -n "$HF_BASE" ]; then die "BASE and HF_BASE are both set. Leave one out."; fi
[ -n "$BASE$HF_BASE" ] || die "nothing to start from. Set BASE=model.pt, or HF_BASE to a folder of fairseq-peft to-hf."
[ -n "$THREADS" ] || THREADS=$(nproc)
export OMP_NUM_THREADS=$THREADS
RUN=$RUNS/$(basename "$DATA")/pretrained/$LABEL/seed$SEED

[ -n "$HF_PACKAGES" ] || HF_PACKAGES=$(hf_packages)
hf_cli() {  # VERB ARGS...: fairseq-peft VERB, with the packages of HF_PACKAGES behind PYTHON's own
  if [ -z "$HF_PACKAGES" ]; then
    peft_cli "$@"
  else
    run env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -c \
      'import sys; _, packages, *words = sys.argv
sys.path.append(packages); sys.argv = ["fairseq-peft", *words]
from fairseq_peft.cli import main; sys.exit(main())' "$HF_PACKAGES" "$@"
  fi
}

hf_cli finetune-hf "$DATA" "${BASE:-$HF_BASE}" --save-dir "$RUN" --method "$METHOD" --label "$LABEL" --seed "$SEED" \
  --lr "$LR" --epochs "$EPOCHS" --batch-size "$BATCH_SIZE" --warmup "$WARMUP" --precision "$PRECISION" \
  --subsets "$SUBSETS" --metric "$METRIC" --keep "$KEEP" ${CHANGE[@]+"${CHANGE[@]}"} ${EXTRA[@]+"${EXTRA[@]}"}
