#!/usr/bin/env bash
# The experiment on picture captions: a translator from English to German learns French, from many rows and from few.
#
# Usage: translation.sh [--dry-run] [PART...]
#
#   JOBS=8 bash scripts/translation.sh                    # one GPU, or a large machine: everything
#   bash scripts/translation.sh base rows-3000            # two cores: hours for the base; resumable
#
# Parts, in order; all of them without an argument:
#   base         fairseq's transformer, English to German, 29,000 rows; every other part starts from it
#   rows-29000   to French with all rows: all weights, LoRA, adapters without and with the words, biases, prefix; 3 seeds
#   rows-3000    the same with 3,000 rows       rows-300   with 300
#   scratch      to French from random weights, with all rows
#
# Each run is scored on captions in French (fr), on those of another domain, with ambiguous verbs (fr-coco), and on
# German (de), which it may forget. A tag in front of the source says the language. The checkpoint is the one with the
# lowest loss on valid. Scores are of cased text as it is written. What is done is kept; each part ends with its table.
# All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#EXTRA[@]}" = 0 ] || die "takes no flags of fairseq-train; see --help"
# shellcheck source=translation_lib.sh
. "$ROOT/scripts/translation_lib.sh"

SHARED=${FAIRSEQ_PEFT_SHARED:-$ROOT/../shared}  # where data lie
RAW=${RAW:-$SHARED/data/multi30k}               # {train,valid,test,test_coco}.{en,de,fr}
WORK=${WORK:-$ROOT/runs/translation}            # where everything lands
SEEDS=${SEEDS:-1 2 3}                           # seeds of the runs
METHODS=${METHODS:-full lora adapter adapter_words bitfit prefix} # methods; adapter_words: LoRA on the words beside adapters
JOBS=${JOBS:-1}                                 # runs at once
THREADS=${THREADS:-$((($(getconf _NPROCESSORS_ONLN) + JOBS - 1) / JOBS))} # CPU threads of each: the cores, shared out
DEVICE=${DEVICE:-cpu}                           # cpu or cuda
FORK=${FORK:-1}                                 # 1: programs are forks of one process; 0: each imports everything itself
VOCAB_SIZE=${VOCAB_SIZE:-10000}                 # pieces of all three languages
PRECISION=${PRECISION:-auto}                    # of all training: fp32 (the base by stock fairseq), bf16, or auto: the faster one here
LAYERS=${LAYERS:-4}                             # of each stack
WIDTH=${WIDTH:-256}                             # of the model; its feed-forward maps are 4 times as wide
MAX_TOKENS=${MAX_TOKENS:-4000}                  # of a batch
UPDATES_BASE=${UPDATES_BASE:-8000}              # of the base, and from scratch
EPOCHS=${EPOCHS:-}                              # of each run, at most; empty: 20 with 29,000 rows, 40 with 3,000, 100 with 300
UPDATES=${UPDATES:-5000}                        # the same
BEAM=${BEAM:-5}                                 # of the search
LR_FULL=${LR_FULL:-5e-4}                        # peak learning rates
LR_LORA=${LR_LORA:-5e-3}                        # rank 16 on all linear maps and the words
LR_ADAPTER=${LR_ADAPTER:-3e-3}                  # bottleneck 64
LR_ADAPTER_WORDS=${LR_ADAPTER_WORDS:-$LR_ADAPTER} # the same with LoRA of rank 16 on the words
LR_BITFIT=${LR_BITFIT:-5e-3}                    # biases
LR_PREFIX=${LR_PREFIX:-1e-2}                    # 20 positions in each attention

PARTS=("${ARGS[@]+"${ARGS[@]}"}")
[ "${#PARTS[@]}" -gt 0 ] || PARTS=(base rows-29000 rows-3000 rows-300 scratch)
for part in "${PARTS[@]}"; do
  case $part in
    base | rows-29000 | rows-3000 | rows-300 | scratch) ;;
    *) die "'$part' is no part: give some of base, rows-29000, rows-3000, rows-300 and scratch" ;;
  esac
done
for method in $METHODS; do rate_of "$method" >/dev/null; done
if [ "$DRY_RUN" != 1 ]; then
  [ -e "$RAW/train.fr" ] || die "RAW=$RAW has no train.fr. Expected {train,valid,test,test_coco}.{en,de,fr}"
fi

BASE="$WORK/base/checkpoint_best.pt"
REFERENCES=("fr=$RAW/test.fr" "fr-coco=$RAW/test_coco.fr" "de=$RAW/test.de")
COMMON=(--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas "(0.9,0.98)"
  --clip-norm 1 --dropout 0.3 --num-workers 0 --no-epoch-checkpoints --lr-scheduler inverse_sqrt --log-format simple
  --log-interval 100 --max-tokens "$MAX_TOKENS")
[ "$DEVICE" != cpu ] || COMMON+=(--cpu)
SIZES=(--share-all-embeddings)
for half in encoder decoder; do
  SIZES+=("--$half-layers" "$LAYERS" "--$half-embed-dim" "$WIDTH" "--$half-ffn-embed-dim" $((4 * WIDTH)) "--$half-attention-heads" 4)
done

files() { printf %s "$RAW/$1.en:$RAW/$1.$2:__$2__"; }  # SPLIT LANGUAGE

prepare() {  # ROWS: English to French with so many rows, tested in both languages
  [ ! -e "$WORK/data-bin/$1/done" ] || return 0
  peft_cli prepare-pairs "$WORK/data-bin/$1" -s en -t xx --spm "$WORK/data-bin/de/sentencepiece.bpe.model" --train-rows "$1" \
    --train "$(files train fr)" --valid "$(files valid fr)" --test "$(files test fr)" "$(files test_coco fr)" "$(files test de)"
  run touch "$WORK/data-bin/$1/done"
}

cell() {  # METHOD SEED
  local rate epochs updates every warmup flags=(--arch "transformer_$1")
  rate=$(rate_of "$1")
  case ${DATA##*/} in 29000) epochs=20 ;; 3000) epochs=40 ;; *) epochs=100 ;; esac
  schedule "${DATA##*/}" 30
  case $1 in
    lora) flags+=(--peft-targets "all-linear,embed_tokens" --lora-rank 16) ;;
    adapter) flags+=(--adapter-bottleneck 64) ;;
    adapter_words)
      flags=(--arch transformer_peft --peft "adapter,lora" --adapter-bottleneck 64 --peft-targets embed_tokens --lora-rank 16) ;;
    prefix) flags+=(--prefix-num-tokens 20) ;;
  esac
  adapt "$DATA" "$BASE" "$1" "$2" "${flags[@]}" --lr "$rate" --max-epoch "$epochs" --max-update "$updates" \
    --validate-interval "$every" --save-interval "$every" --warmup-updates "$warmup" -- "${REFERENCES[@]}"
}

part() {
  printf '\n== %s\n' "$1"
  case $1 in
    base)
      if [ ! -e "$WORK/data-bin/de/done" ]; then
        peft_cli prepare-pairs "$WORK/data-bin/de" -s en -t xx --vocab-size "$VOCAB_SIZE" --symbols __fr__ \
          --spm-text "$RAW/train.fr" --train "$(files train de)" --valid "$(files valid de)"
        run touch "$WORK/data-bin/de/done"
      fi
      prepare 29000
      train_base "$WORK/data-bin/de" "$WORK/base" "${SIZES[@]}" --lr 1e-3 --warmup-updates $((UPDATES_BASE / 10 + 1)) \
        --max-update "$UPDATES_BASE"
      score_checkpoint "$WORK/data-bin/29000" "$BASE" "$WORK/base-scores" "${REFERENCES[@]}" ;;
    scratch)
      prepare 29000
      RUNS="$WORK/scratch" DATA="$WORK/data-bin/29000"
      train_base "$DATA" "$RUNS/full/seed1" "${SIZES[@]}" --lr 1e-3 --warmup-updates $((UPDATES_BASE / 10 + 1)) \
        --max-update "$UPDATES_BASE"
      [ -e "$RUNS/full/seed1/scores.json" ] ||
        score_checkpoint "$DATA" "$RUNS/full/seed1/checkpoint_best.pt" "$RUNS/full/seed1" "${REFERENCES[@]}"
      peft_cli text-report "$RUNS" --command "bash scripts/translation.sh $1" ;;
    rows-*)
      RUNS="$WORK/$1" DATA="$WORK/data-bin/${1#rows-}"
      prepare "${1#rows-}"
      if [ "$DRY_RUN" != 1 ]; then
        [ -e "$WORK/base-scores/scores.json" ] || die "the part $1 starts from the base: run the part base before"
        mkdir -p "$RUNS/base/seed1"
        cp "$WORK/base-scores/scores.json" "$RUNS/base/seed1"
      fi
      for method in $METHODS; do for seed in $SEEDS; do echo "$method $seed"; done; done | in_waves cell "$RUNS/logs"
      peft_cli text-report "$RUNS" --command "bash scripts/translation.sh $1" ;;
  esac
}

choose_precision
run mkdir -p "$WORK"
start_worker "$WORK"
for part in "${PARTS[@]}"; do part "$part"; done
