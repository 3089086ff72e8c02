# shellcheck shell=bash
# What the scripts of translation share; source lib.sh first. A cell is one run, RUNS/<method>/seed<k>.

SEARCH=(--max-len-a 1.5 --max-len-b 10)  # how long what is written may be, and what else the search heeds
METRICS=bleu,chrf                        # of the scores
WORKER=  # where a worker listens that has imported all; empty: each program is a process of its own

# start_worker FOLDER: spare the programs to come their seconds of imports. Each has THREADS threads.
start_worker() {
  export OMP_NUM_THREADS=$THREADS
  [ "$DRY_RUN" != 1 ] && [ "$FORK" = 1 ] || return 0
  WORKER=$(mktemp -d)/worker  # short, as the name of a socket must be
  trap 'rm -rf "${WORKER%/*}"' EXIT
  env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m fairseq_peft.cli worker --parent $$ "$WORKER" \
    >"$1/worker.log" 2>&1 &
  while [ ! -S "$WORKER" ]; do kill -0 $! 2>/dev/null || die "the worker did not start: $1/worker.log"; sleep 0.2; done
}

# program NAME ARGS...: fairseq's train or generate.
program() {
  if [ -z "$WORKER" ]; then fairseq_cli "$@"; else peft_cli worker "$WORKER" "$@"; fi
}

# rate_of METHOD: its learning rate, LR_<METHOD>.
rate_of() {
  local name
  name=LR_$(printf %s "$1" | tr "[:lower:]" "[:upper:]")
  [ -n "${!name:-}" ] || die "METHODS has '$1', for which there is no rate: give $name, or leave the method out"
  printf %s "${!name}"
}

# choose_precision: what all training runs compute in. PRECISION=auto becomes the faster one on DEVICE.
choose_precision() {
  local cuda=False
  case $PRECISION in
    fp32 | bf16) ;;
    auto)
      [ "${DEVICE:-cpu}" = cpu ] || cuda=True
      "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)" || die "$PYTHON has no torch: bash scripts/setup.sh, or PYTHON=its Python"
      PRECISION=$(cd "$ROOT" && "$PYTHON" -c "from fairseq_peft import precision as p; print(p.resolve('auto', $cuda))")
      [ "$PRECISION" != fp16 ] || die "FAIRSEQ_PEFT_PRECISION=fp16 is not for these runs: unset it, or give PRECISION=fp32 or bf16" ;;
    *) die "PRECISION=$PRECISION is unknown: give auto, fp32 or bf16" ;;
  esac
}

# train_base DATA SAVE_DIR FLAGS...: fairseq's transformer from random weights. Stock fairseq trains it in fp32; in bf16, which
# stock does not compute in on a CPU, the plugin's transformer_full does, whose tensors have the names of stock's.
train_base() {
  local data=$1 save=$2 model=(--arch transformer)
  shift 2
  [ "$PRECISION" = fp32 ] || model=(--user-dir "$ROOT/fairseq_peft" --arch transformer_full --precision "$PRECISION")
  [ ! -e "$save/done" ] || return 0
  run mkdir -p "$save"
  program train "$data" --task translation "${model[@]}" --save-dir "$save" \
    --log-file "$save/train.log" --seed 1 "${COMMON[@]}" "$@"
  run touch "$save/done"
}

# schedule ROWS TOKENS: of a run on so many rows of so many tokens, with EPOCHS passes, or the $epochs that are set: how many updates,
# UPDATES at most, how many of them to warm up, and after how many passes each to validate, so that there are some 20 validations.
# shellcheck disable=SC2034,SC2153  # for the caller; UPDATES is a knob
schedule() {
  epochs=${EPOCHS:-$epochs}
  updates=$((epochs * ($1 * $2 / MAX_TOKENS + 1)))
  [ "$updates" -lt "$UPDATES" ] || updates=$UPDATES
  warmup=$((updates / 20 + 1))
  every=$(((epochs + 19) / 20))
}

# score_checkpoint DATA CHECKPOINT RUN NAME=FILE...: translate test and score its parts, as RUN/scores.json.
score_checkpoint() {
  local data=$1 checkpoint=$2 folder=$3
  shift 3
  run mkdir -p "$folder"
  program generate "$data" --user-dir "$ROOT/fairseq_peft" --task translation --path "$checkpoint" --gen-subset test \
    --beam "$BEAM" "${SEARCH[@]}" --max-tokens 8000 --required-batch-size-multiple 1 \
    --remove-bpe sentencepiece --results-path "$folder"
  peft_cli score "$folder/generate-test.txt" "$@" --metrics "$METRICS" --out "$folder/scores.json"
}

# adapt DATA BASE METHOD SEED FLAGS... -- NAME=FILE...: one cell: train, translate, score.
adapt() {
  local data=$1 base=$2 folder="$RUNS/$3/seed$4" seed=$4 flags=()
  shift 4
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  [ ! -e "$folder/scores.json" ] || return 0
  run rm -rf "$folder"
  run mkdir -p "$folder"
  program train "$data" --user-dir "$ROOT/fairseq_peft" --task translation --finetune-from-model "$base" \
    --no-save-optimizer-state --save-dir "$folder" --log-file "$folder/train.log" --seed "$seed" \
    --precision "$PRECISION" "${COMMON[@]}" "${flags[@]}"
  score_checkpoint "$data" "$folder/checkpoint_best.pt" "$folder" "$@"
  run rm -f "$folder/checkpoint_last.pt"
}

# in_waves COMMAND LOGS: the words of each line of stdin go to a call of COMMAND, a function, whose output goes to a file in
# LOGS; JOBS of them at once.
in_waves() {
  local line pid failed=0 lines=() pids=()
  run mkdir -p "$2"
  while IFS= read -r line; do lines+=("$line"); done
  for line in ${lines[@]+"${lines[@]}"}; do
    if [ "$DRY_RUN" = 1 ]; then
      # shellcheck disable=SC2086  # words
      "$1" $line
      continue
    fi
    in_wave "$1" "$2/${line// /-}.log" "$line" &
    pids+=($!)
    [ "${#pids[@]}" -ge "$JOBS" ] || continue
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    pids=()
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
  [ "$failed" = 0 ] || die "not all runs have finished. What is done is kept: start again"
}

in_wave() {  # COMMAND LOG LINE: one of them, and a line about it
  local start=$SECONDS status words
  read -ra words <<<"$3"
  set +e; (set -e; "$1" "${words[@]}") </dev/null >"$2" 2>&1; status=$?; set -e
  if [ "$status" != 0 ]; then
    tail -n 20 "$2" >&2
    printf '%-40s failed; all of its output: %s\n' "$3" "$2" >&2
    return 1
  fi
  printf '%-40s %4d s\n' "$3" $((SECONDS - start))
}
