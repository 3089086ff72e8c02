# shellcheck shell=bash disable=SC2034
# The knobs of a run that finetune.sh, finetune_hf.sh and sweep.sh share. A script sources this file behind parse_args,
# and lib.sh's --help lists these knobs with the script's own.

DATA=${DATA:-$ROOT/data-bin/cls-books}  # folder that prepare_data.sh made
RUNS=${RUNS:-$ROOT/runs}                # where runs land
EPOCHS=${EPOCHS:-5}                     # passes over train
BATCH_SIZE=${BATCH_SIZE:-16}            # rows an update
WARMUP=${WARMUP:-6}                     # per cent of the updates
PRECISION=${PRECISION:-auto}            # fp32, bf16, or auto: the faster one here
SUBSETS=${SUBSETS:-valid,test}          # evaluated every epoch; the first chooses the checkpoint
THREADS=${THREADS:-}                    # CPU threads a run (all; in a sweep JOBS share them)
KEEP=${KEEP:-best}                      # checkpoints to keep when done: best or none

case $KEEP in best | none) ;; *) die "KEEP=$KEEP is unknown: set KEEP=best or KEEP=none." ;; esac
RUN_KNOBS=(--data "$DATA" --runs "$RUNS" --epochs "$EPOCHS" --batch-size "$BATCH_SIZE" --warmup "$WARMUP"
  --precision "$PRECISION" --subsets "$SUBSETS" --keep "$KEEP" ${THREADS:+--threads "$THREADS"}
  ${CHANGE[@]+"${CHANGE[@]}"})
[ "$DRY_RUN" = 0 ] || RUN_KNOBS+=(--dry-run)
