# shellcheck shell=bash disable=SC2034
# What finetune.sh and finetune_hf.sh share: the knobs of a run, so that both train alike, and what is done before
# and after training. A script sources it behind parse_args, and lib.sh's --help lists its knobs with the script's own.

DATA=${DATA:-$ROOT/data-bin/cls-books}  # folder that prepare_data.sh made
RUNS=${RUNS:-$ROOT/runs}                # where runs land
SEED=${SEED:-1}                         # seed of head, method, batches and dropout
LR=${LR:-1e-4}                          # peak learning rate
EPOCHS=${EPOCHS:-5}                     # passes over train
BATCH_SIZE=${BATCH_SIZE:-16}            # rows an update
WARMUP=${WARMUP:-6}                     # per cent of the updates
PRECISION=${PRECISION:-auto}            # fp32, bf16, or auto: the faster one here
SUBSETS=${SUBSETS:-valid,test}          # evaluated every epoch; the first chooses the checkpoint
THREADS=${THREADS:-$(nproc)}            # CPU threads
KEEP=${KEEP:-best}                      # checkpoints to keep when done: best or none

# begin_run INIT LABEL: check the knobs and set RUN, the run's folder; ends here if the run is done.
begin_run() {
  case $KEEP in best | none) ;; *) die "KEEP=$KEEP is unknown: set KEEP=best or KEEP=none." ;; esac
  [ -f "$DATA/label/train.idx" ] || die "$DATA/label/train.idx does not exist. Make the folder with scripts/prepare_data.sh."
  RUN=$RUNS/$(basename "$DATA")/$1/$2/seed$SEED
  if [ -f "$RUN/result.json" ]; then
    echo "$RUN is done."
    exit 0
  fi
}

# train_run COMMAND...: train with the output in train.log (COMMAND true: it is trained), then write result.json.
train_run() {
  export OMP_NUM_THREADS=$THREADS
  if [ "$DRY_RUN" = 1 ]; then
    "$@"
  else
    mkdir -p "$RUN"
    if ! "$@" >>"$RUN/train.log" 2>&1; then
      # Cut: fairseq logs its whole configuration as one line of thousands of characters.
      tail -n 20 "$RUN/train.log" | grep -v Warning | cut -c 1-400 >&2 || true
      die "training failed; its log is $RUN/train.log"
    fi
  fi
  peft_cli result "$RUN" --require-epochs "$EPOCHS"
}
