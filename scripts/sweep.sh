#!/usr/bin/env bash
# Fine-tune methods x starts x seeds, several at once, each learning rate picked on valid.
#
# Usage: sweep.sh [--dry-run] [--redo | --extend] [-- FLAGS OF fairseq-train]
#
#   BASE=model.pt DATA=data-bin/cls-books JOBS=2 bash scripts/sweep.sh
#
# A cell is start/method. The method may be several with + between (pretrained/lora+prefix), or a name of your own,
# whose flags stand in FLAGS_<NAME>:
#   CELLS=pretrained/pissa FLAGS_PISSA="--peft lora --lora-init pissa" BASE=model.pt bash scripts/sweep.sh
#
# For each cell with more than one learning rate in its grid, every rate runs once with the first seed, under
# RUNS-grid/; the best on valid, by METRIC, is taken, and its run is the first seed's run. Then the other seeds run with
# that rate. Before the first run, everything that can be is checked: base, dictionary, sizes, methods, flags, places and
# room on the disk; what is wrong is said, and nothing is started. Runs that are done are skipped, so an interrupted sweep
# goes on where it was. Failures are listed at the end with the reason, and the exit status says so; a cell whose first
# run fails is left. A run of another plan (data, base, knobs or flags) that is there is refused with what differs:
# --redo throws such runs away, --extend goes on with them for more EPOCHS (see finetune.sh). Two sweeps may share RUNS:
# a run that the other one trains is waited for.
#
# The runs are children of one worker, which has imported torch, fairseq and the plugin once: each is as isolated and as
# reproducible as a process of its own, and starts without the seconds that imports take. Without a worker, asked for
# by WORKER=none or where none can run, each is a process of its own, with the same result.
#
# MEMBERS=5 trains up to five runs of a cell, which differ in seed or learning rate, in one process on one base
# (fairseq-peft sweep-members): the same runs, and the same files. Cells that train the whole base, scratch/... and
# .../full, have nothing to share, so their runs stay apart.
#
# On a terminal a table shows what trains; elsewhere, lines. This is fairseq-peft sweep. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TAKES_CHANGE=1
parse_args "$@"
# shellcheck source=finetune_lib.sh
. "$ROOT/scripts/finetune_lib.sh"

CELLS=${CELLS:-}                        # start/method each (those of fairseq-peft sweep)
SEEDS=${SEEDS:-1 2 3}                   # the first one tunes the learning rate
LR_SCRATCH=${LR_SCRATCH:-}              # grid of every cell that starts from scratch (1e-4 2e-4 5e-4)
# LR_<METHOD>=                          # grid of another cell, such as LR_LORA (fairseq-peft methods --rates METHOD)
# FLAGS_<NAME>=                         # flags of the cells of that name, such as FLAGS_LORA
BASE=${BASE:-}                          # checkpoint, or folder of Hugging Face's, to start from, for the cells pretrained/...
LABELS=${LABELS:-}                     # of a base of Hugging Face's: the answers that there are, with commas (any text)
SIZE=${SIZE:-auto}                      # auto (BASE's, and roberta_small from scratch), roberta_small, _base or _large
ARCH_ARGS=${ARCH_ARGS:-}                # more flags of the architecture, e.g. "--encoder-layers 2"
METRIC=${METRIC:-}                      # chooses checkpoint and rate: accuracy (default), macro_f1, mcc, loss, f1_<class>;
#                                         of labels micro_f1 (default), of numbers pearson (default), spearman, mse; of texts
#                                         loss (default), rouge1, rouge2, rougeL
EVAL_TEST=${EVAL_TEST:-each}            # each epoch, or best: test is evaluated once, with the best weights
PATIENCE=${PATIENCE:-0}                 # end a run after so many epochs without a better one; 0: never
CLASS_WEIGHTS=${CLASS_WEIGHTS:-none}    # none, balanced, or one number a class with commas
JOBS=${JOBS:-1}                         # runs at once
MEMBERS=${MEMBERS:-1}                   # runs of a cell in one process; it counts as one of JOBS
EVERY=${EVERY:-10}                      # seconds between progress lines
WORKER=${WORKER:-start}                 # start (one for this sweep), none, or where one listens

refuse_variables "METHODS Say CELLS, such as CELLS=pretrained/lora" "METHOD Say CELLS, such as CELLS=pretrained/lora" \
  "INIT Say CELLS, such as CELLS=scratch/full" "LABEL Say CELLS, and FLAGS_<NAME>" "CELL Say CELLS" "SEED Say SEEDS" \
  "LR Say LR_<METHOD> or LR_SCRATCH" "EPOCH Say EPOCHS" "JOB Say JOBS" "BATCH Say BATCH_SIZE" "METRICS Say METRIC" \
  "FLAGS Say FLAGS_<NAME>, or give the flags of all cells behind --" "THREAD Say THREADS" "MEMBER Say MEMBERS"
GRIDS=()
for name in "${!LR_@}"; do [ -z "${!name}" ] || GRIDS+=(--rates "${name#LR_}=${!name}"); done
for name in "${!FLAGS_@}"; do [ -z "${!name}" ] || GRIDS+=(--cell-flags "${name#FLAGS_}=${!name}"); done

exec_peft_cli sweep "${RUN_KNOBS[@]}" ${BASE:+--base "$BASE"} ${CELLS:+--cells "$CELLS"} --seeds "$SEEDS" \
  ${GRIDS[@]+"${GRIDS[@]}"} --size "$SIZE" --arch-args=" $ARCH_ARGS" --metric "$METRIC" --labels "$LABELS" \
  --eval-test "$EVAL_TEST" --patience "$PATIENCE" \
  --class-weights "$CLASS_WEIGHTS" --jobs "$JOBS" --members "$MEMBERS" --every "$EVERY" --worker "$WORKER" \
  -- ${EXTRA[@]+"${EXTRA[@]}"}
