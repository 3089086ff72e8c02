#!/usr/bin/env bash
# Fine-tune one model with Hugging Face's Trainer, as finetune.sh does with fairseq: one method, one seed.
#
# Usage: finetune_hf.sh [--dry-run] [-- FLAGS OF fairseq-peft finetune-hf]
#
#   BASE=model.pt METHOD=full SEED=1 bash scripts/finetune_hf.sh
#   HF_BASE=roberta_small_hf METHOD=lora LR=1e-3 bash scripts/finetune_hf.sh
#   BASE=model.pt METHOD=lora LABEL=hf-r4 bash scripts/finetune_hf.sh -- --lora-rank 4
#
# Data, splits, truncation, batches, seeds, optimizer and metrics are those of finetune.sh; the model, LoRA and the
# training loop are transformers' and PEFT's. The run lands beside fairseq's, in RUNS/<data>/pretrained/LABEL/seed<SEED>/:
# run.json, metrics.jsonl, train.log, TensorBoard events, checkpoint_best/ (chosen on valid; a folder of the library's),
# and result.json when it is done. A run that is done is skipped; one that was interrupted starts again.
#
# It takes fairseq and the extra hf (transformers, accelerate, peft) in one environment. Where PYTHON has no transformers,
# they are taken from .venv-peft, which scripts/test.sh parity makes. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
# shellcheck source=finetune_lib.sh
. "$ROOT/scripts/finetune_lib.sh"

METHOD=${METHOD:-full}                  # full, or lora: PEFT's
LABEL=${LABEL:-hf-$METHOD}              # what the run is called in reports
BASE=${BASE:-}                          # checkpoint of fairseq's to start from: converted for this run
HF_BASE=${HF_BASE:-}                    # or a folder that fairseq-peft to-hf made of it
HF_PACKAGES=${HF_PACKAGES:-}            # a site-packages folder with what PYTHON lacks of the extra hf

case $METHOD in full | lora) ;; *) die "METHOD=$METHOD is unknown here: set METHOD=full or METHOD=lora." ;; esac
if [ -n "$BASE" ] && [ -n "$HF_BASE" ]; then die "BASE and HF_BASE are both set. Leave one out."; fi
[ -n "$BASE$HF_BASE" ] || die "nothing to start from. Set BASE=model.pt, or HF_BASE to a folder of fairseq-peft to-hf."
begin_run pretrained "$LABEL"

if [ -z "$HF_PACKAGES" ] && [ -x "$ROOT/.venv-peft/bin/python" ] &&
  ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("transformers") is None)'; then
  HF_PACKAGES=$("$ROOT/.venv-peft/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
fi
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

train() {
  if [ -n "$BASE" ]; then
    hf_cli to-hf "$BASE" "$RUN/base" --dict "$DATA/input0/dict.txt" --bpe-dir "$DATA" --force ||
      return
  fi
  hf_cli finetune-hf "$DATA" "${HF_BASE:-$RUN/base}" --save-dir "$RUN" --method "$METHOD" --label "$LABEL" \
    --base-name "${BASE:-$HF_BASE}" --seed "$SEED" --lr "$LR" --epochs "$EPOCHS" --batch-size "$BATCH_SIZE" \
    --warmup "$WARMUP" --precision "$PRECISION" --subsets "$SUBSETS" ${EXTRA[@]+"${EXTRA[@]}"}
}

train_run train
[ "$DRY_RUN" = 0 ] || exit 0
rm -rf "$RUN/base"
[ "$KEEP" = best ] || rm -rf "$RUN/checkpoint_best"
