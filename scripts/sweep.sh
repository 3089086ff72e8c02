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
# For each cell with more than one learning rate in its grid, every rate runs once with the first
# seed, under RUNS-grid/; the rate with the highest accuracy on valid is taken, and its run is the first seed's run.
# Then the other seeds run with that rate. Runs that are done are skipped, so an interrupted sweep goes on where it
# was. Failures are listed at the end with the reason, and the exit status says so; a cell whose first run fails is
# left. A run of another plan (data, base, knobs or flags) that is there is a failure that says what differs: --redo
# throws such runs away, --extend goes on with them for more EPOCHS (see finetune.sh). Two sweeps may share RUNS: a run
# that the other one trains is waited for.
#
# The runs are children of one worker (fairseq-peft worker), which imports torch, fairseq and the plugin once: each is
# as isolated and as reproducible as a process of its own, and starts without the seconds that imports take. Without a
# worker, asked for by WORKER=none or where none can run, each is a process of its own, with the same result.
#
# MEMBERS=5 trains up to five runs of a cell, which differ in seed or learning rate, in one process on one base
# (fairseq-peft sweep-members): the same runs, and the same files. Cells that train the whole base, scratch/... and
# .../full, have nothing to share, so their runs stay apart.
#
# All knobs are variables, those of finetune.sh included:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TAKES_CHANGE=1
parse_args "$@"

DATA=${DATA:-$ROOT/data-bin/cls-books}                 # folder that prepare_data.sh made
RUNS=${RUNS:-$ROOT/runs}                               # where runs land
CELLS=${CELLS:-scratch/full pretrained/full pretrained/head_only pretrained/lora pretrained/adapter pretrained/prompt}   # start/method
SEEDS=${SEEDS:-1 2 3}                                  # the first one tunes the learning rate
LR_SCRATCH=${LR_SCRATCH:-1e-4 2e-4 5e-4}               # grid of every cell that starts from scratch
# LR_<METHOD>, such as LR_LORA or LR_LORA_PREFIX        grid of another cell; default: fairseq-peft methods --rates METHOD
JOBS=${JOBS:-1}                                        # runs at once
MEMBERS=${MEMBERS:-1}                                  # runs of a cell in one process; it counts as one of JOBS
THREADS=${THREADS:-$((($(nproc) + JOBS - 1) / JOBS))}  # CPU threads a run
EVERY=${EVERY:-10}                                     # seconds between progress lines
WORKER=${WORKER:-start}                                # start (one for this sweep), none, or where one listens
refuse_variables "METHODS Say CELLS, such as CELLS=pretrained/lora" "METHOD Say CELLS, such as CELLS=pretrained/lora" \
  "INIT Say CELLS, such as CELLS=scratch/full" "LABEL Say CELLS, and FLAGS_<NAME>" "CELL Say CELLS" "SEED Say SEEDS" \
  "LR Say LR_<METHOD> or LR_SCRATCH" "EPOCH Say EPOCHS" "JOB Say JOBS" "BATCH Say BATCH_SIZE"
export DATA THREADS WORKER

NAME=$(basename "$DATA")
FAILED=()
NUM_DONE=0 NUM_SKIPPED=0 NUM_ALL=0 STARTED=$SECONDS
declare -A RUNNING=() GROUPS_OF=() LOG_OF=() SUCCEEDED=()
QUEUE=()  # runs that wait for their group to be full: RUNS START METHOD SEED LR, a line each
for list in "$CELLS" "$SEEDS"; do
  twice=$(tr ' ' '\n' <<<"$list" | sort | uniq -d | head -n 1)
  [ -z "$twice" ] || die "'$list' names $twice twice. Name each once."
done
[[ $MEMBERS =~ ^[1-9][0-9]*$ ]] || die "MEMBERS=$MEMBERS is no number of runs: give 1 or more."

knob() {  # PREFIX LABEL: the value of the variable PREFIX_LABEL, empty if it is not set
  local name
  name=$1_$(printf %s "$2" | tr 'a-z+,.-' 'A-Z____')
  printf %s "${!name:-}"
}

declare -A GRID=() METHOD_OF=() FLAGS_OF=()
prepare() {  # CELL: its methods, flags and learning rates
  local label=${1#*/} flags words
  flags=$(knob FLAGS "$label")
  METHOD_OF[$1]=$label
  read -ra words <<<"$flags"
  if [ "${words[0]:-}" = --peft ]; then
    METHOD_OF[$1]=${words[1]:-}
    words=("${words[@]:2}")
  fi
  FLAGS_OF[$1]=${words[*]:-}
  case $1 in
    scratch/*) GRID[$1]=$LR_SCRATCH ;;
    *) GRID[$1]=$(knob LR "$label") ;;
  esac
  [ -n "${GRID[$1]}" ] || GRID[$1]=$(DRY_RUN=0 peft_cli methods --rates "${METHOD_OF[$1]}") ||
    die "the cell $1 has no learning rates; name a method, or set FLAGS_<NAME> and LR_<NAME>"
}

progress() {  # TEXT: one line that says where the sweep stands
  local spent=$((SECONDS - STARTED)) ran=$((NUM_DONE - NUM_SKIPPED)) left="?"
  if [ "$ran" -gt 0 ]; then left=$((spent * (NUM_ALL - NUM_DONE) / ran)); fi
  printf '%5d s  %d of %d done, %d running, %d failed, about %s s left  %s\n' \
    "$spent" "$NUM_DONE" "$NUM_ALL" "${#RUNNING[@]}" "${#FAILED[@]}" "$left" "$1"
}

reap() {  # take note of the runs that ended
  local pid status
  for pid in "${!RUNNING[@]}"; do
    kill -0 "$pid" 2>/dev/null && continue
    status=0
    wait "$pid" || status=$?
    if [ -n "${GROUPS_OF[$pid]:-}" ]; then
      finish_group "${GROUPS_OF[$pid]}"
    else
      note "$status" "${RUNNING[$pid]}" "${LOG_OF[$pid]}"
    fi
    unset "RUNNING[$pid]" "GROUPS_OF[$pid]" "LOG_OF[$pid]"
  done
}

note() {  # STATUS TEXT LOG: a run has ended
  local why
  NUM_DONE=$((NUM_DONE + 1))
  if [ "$1" = 0 ]; then
    SUCCEEDED[${2%% *}]=1
  else
    why=$(grep 'error: ' "$3" | tail -n 1) || true
    FAILED+=("$2${why:+: ${why#*error: }}")
    printf 'failed: %s\n' "${FAILED[@]: -1}" >&2
  fi
}

has_failed() {  # CELL: whether a run of it has
  local text
  for text in ${FAILED[@]+"${FAILED[@]}"}; do [[ $text != "$1 "* ]] || return 0; done
  return 1
}

LAST=0
tick() {  # note what ended; show progress now and then; a moment of rest
  reap
  if [ $((SECONDS - LAST)) -ge "$EVERY" ]; then
    progress "${RUNNING[*]}"
    LAST=$SECONDS
  fi
  sleep 0.1
}

wait_for() {  # N: until fewer than N runs are running
  reap
  while [ "${#RUNNING[@]}" -ge "$1" ]; do tick; done
}

wait_cell() {  # CELL: until none of its runs is running
  reap
  while [[ " ${RUNNING[*]}" == *" $1 seed"* ]]; do tick; done
}

finetune() {  # RUNS START METHOD SEED LR [--dry-run]: one run
  local flags
  read -ra flags <<<"${FLAGS_OF[$2/$3]}"
  RUNS=$1 INIT=$2 METHOD=${METHOD_OF[$2/$3]} LABEL=$3 SEED=$4 LR=$5 CELLS='' SEEDS='' WAIT=1 \
    bash "$ROOT/scripts/finetune.sh" "${@:6}" ${CHANGE[@]+"${CHANGE[@]}"} -- ${flags[@]+"${flags[@]}"} ${EXTRA[@]+"${EXTRA[@]}"}
}

start() {  # RUNS START METHOD SEED LR: one run in the background, or in the queue of its group
  local text="$2/$3 seed $4 lr $5"
  if [ "$DRY_RUN" = 1 ]; then
    echo "# $text"
    finetune "$@" --dry-run
    return
  fi
  local log="$1/logs/$NAME-$2-$3-seed$4.log"
  reap
  if [ -z "${SUCCEEDED[$2/$3]:-}" ] && has_failed "$2/$3"; then
    note 1 "$text" <(echo "error: not started, because the first run of this cell failed")
    return
  fi
  mkdir -p "$1/logs"
  if [ -f "$1/$NAME/$2/$3/seed$4/result.json" ] && [ ${#CHANGE[@]} = 0 ]; then  # done, if it is of this plan
    if finetune "$@" >"$log" 2>&1; then
      NUM_SKIPPED=$((NUM_SKIPPED + 1))
      note 0 "$text" "$log"
    else
      note 1 "$text" "$log"
    fi
    return
  fi
  if [ "$MEMBERS" -gt 1 ] && [ "$2" != scratch ] && [ "${METHOD_OF[$2/$3]}" != full ]; then
    QUEUE+=("$*")
    [ "${#QUEUE[@]}" -lt "$MEMBERS" ] || start_group
    return
  fi
  wait_for "$JOBS"
  [ "$WORKER" != start ] || start_worker
  finetune "$@" >"$log" 2>&1 &
  RUNNING[$!]=$text LOG_OF[$!]=$log
  progress "started $text"
}

start_group() {  # the queue as members of one process, in the background
  local run runs=(${QUEUE[@]+"${QUEUE[@]}"}) words text='' log
  QUEUE=()
  case ${#runs[@]} in
    0) return ;;
    1) read -ra words <<<"${runs[0]}"; MEMBERS=1 start "${words[@]}"; return ;;
  esac
  wait_for "$JOBS"
  [ "$WORKER" != start ] || start_worker
  for run in "${runs[@]}"; do
    read -ra words <<<"$run"
    text+="${text:+, }${words[1]}/${words[2]} seed ${words[3]} lr ${words[4]}"
  done
  mkdir -p "$RUNS/logs"
  log=$RUNS/logs/$NAME-${words[1]}-${words[2]}-members.log
  train_group "${runs[@]}" >"$log" 2>&1 &
  RUNNING[$!]=$text
  GROUPS_OF[$!]=$(printf '%s\n' "${runs[@]}")
  progress "started $text"
}

train_group() {  # RUN...: train them; the results are taken when it has ended
  local run words way=(worker "$WORKER" sweep-members)
  [ "$WORKER" != none ] || way=(sweep-members)
  export OMP_NUM_THREADS=$THREADS
  for run in "$@"; do
    read -ra words <<<"$run"
    STEP=plan finetune "${words[@]}" || true  # it fails again when its result is to be taken, and is noted there
  done | sed '/ is done\.$/d' | peft_cli "${way[@]}" -
}

finish_group() {  # RUNS, a line each: take the results; a run that is not trained to its end has failed
  local run words log status
  while read -r run; do
    read -ra words <<<"$run"
    mkdir -p "${words[0]}/logs"
    log=${words[0]}/logs/$NAME-${words[1]}-${words[2]}-seed${words[3]}.log
    status=0
    STEP=finish finetune "${words[@]}" >"$log" 2>&1 </dev/null || status=$?
    note "$status" "${words[1]}/${words[2]} seed ${words[3]} lr ${words[4]}" "$log"
  done <<<"$1"
}

SERVER='' WORKER_DIR=''
start_worker() {  # sets WORKER to where it listens, or to none if it does not start
  WORKER_DIR=$(mktemp -d "${TMPDIR:-/tmp}/fairseq-peft.XXXXXX")  # for this user alone
  WORKER=$WORKER_DIR/worker
  OMP_NUM_THREADS=$THREADS PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} \
    "$PYTHON" -m fairseq_peft.cli worker --parent $$ "$WORKER" </dev/null >"$WORKER_DIR/log" 2>&1 &
  SERVER=$!
  until [ -S "$WORKER" ]; do
    if ! kill -0 "$SERVER" 2>/dev/null; then
      echo "no worker, so each run is a process of its own: $(tail -n 1 "$WORKER_DIR/log")" >&2
      SERVER='' WORKER=none
      return
    fi
    sleep 0.1
  done
}

end() {  # PID: it and all that it started
  local child
  for child in $(pgrep -P "$1"); do end "$child"; done
  kill "$1" 2>/dev/null || true
}

stop() {
  local pid
  for pid in "${!RUNNING[@]}"; do end "$pid"; done
  exit 130
}

clean() {  # the worker ends its runs, if there are any left
  if [ -n "$SERVER" ]; then
    kill "$SERVER" 2>/dev/null || true
    wait "$SERVER" 2>/dev/null || true
  fi
  [ -z "$WORKER_DIR" ] || rm -rf "$WORKER_DIR"
}
trap stop INT TERM
trap clean EXIT

pick() {  # CELL: sets PICKED_LR and PICKED_RUN, or leaves them empty if a run of the grid failed
  local rates runs=() rate
  rates=${GRID[$1]}
  PICKED_LR=$rates PICKED_RUN=
  case $rates in *" "*) ;; *) return ;; esac
  if has_failed "$1"; then PICKED_LR=; return; fi
  for rate in $rates; do runs+=("$RUNS-grid/lr$rate/$NAME/$1/seed$FIRST"); done
  for run in "${runs[@]}"; do
    [ -f "$run/result.json" ] || { PICKED_LR=; return; }
  done
  PICKED_RUN=$(peft_cli best-run "${runs[@]}")
  PICKED_LR=${PICKED_RUN#"$RUNS-grid/lr"}
  PICKED_LR=${PICKED_LR%%/*}
}

read -ra ALL_SEEDS <<<"$SEEDS"
FIRST=${ALL_SEEDS[0]}
for cell in $CELLS; do
  prepare "$cell"
  read -ra list <<<"${GRID[$cell]}"
  NUM_ALL=$((NUM_ALL + ${#list[@]} + ${#ALL_SEEDS[@]} - 1))
done

# The grids, first seed.
for cell in $CELLS; do
  rates=${GRID[$cell]}
  for rate in $rates; do
    case $rates in
      *" "*) start "$RUNS-grid/lr$rate" "${cell%/*}" "${cell#*/}" "$FIRST" "$rate" ;;
      # With MEMBERS, a seed whose rate is given waits for the others.
      *) [ "$MEMBERS" -gt 1 ] || start "$RUNS" "${cell%/*}" "${cell#*/}" "$FIRST" "$rate" ;;
    esac
  done
  start_group
done

# The picked rate: its run is the first seed's; the others run now.
for cell in $CELLS; do
  case ${GRID[$cell]} in *" "*) wait_cell "$cell" ;; esac
  if [ "$DRY_RUN" = 1 ]; then
    PICKED_LR="<picked on valid>" PICKED_RUN=
  else
    pick "$cell"
    [ -n "$PICKED_LR" ] || continue
  fi
  target=$RUNS/$NAME/$cell/seed$FIRST
  if [ -n "$PICKED_RUN" ] && ! cmp -s "$PICKED_RUN/plan.json" "$target/plan.json"; then
    if [ -f "$target/result.json" ] && [ -f "$target/plan.json" ] && [ ${#CHANGE[@]} = 0 ]; then
      FAILED+=("$cell seed $FIRST: $target holds a run of another plan than $PICKED_RUN, the one picked now; give --redo")
      continue
    fi
    mkdir -p "$(dirname "$target")"
    rm -rf "$target.$$" "$target"
    cp -r "$PICKED_RUN" "$target.$$"
    mv "$target.$$" "$target"
  fi
  seeds=("${ALL_SEEDS[@]:1}")
  case $MEMBERS:${GRID[$cell]} in 1:* | *" "*) ;; *) seeds=("${ALL_SEEDS[@]}") ;; esac
  for seed in ${seeds[@]+"${seeds[@]}"}; do start "$RUNS" "${cell%/*}" "${cell#*/}" "$seed" "$PICKED_LR"; done
  start_group
done
wait_for 1

[ "$DRY_RUN" = 1 ] && exit 0
progress ""
if [ ${#FAILED[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${FAILED[@]}" >&2
  die "${#FAILED[@]} of $NUM_ALL runs failed; their logs are $RUNS/logs and $RUNS-grid/*/logs. Run again to retry."
fi
