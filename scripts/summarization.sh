#!/usr/bin/env bash
# The experiment on French news: a small BART, pre-trained by denoising on articles, learns to write their abstracts.
#
# Usage: summarization.sh [--dry-run] [PART...]
#
#   JOBS=8 bash scripts/summarization.sh                     # one GPU, or a large machine: everything
#   bash scripts/summarization.sh published base rows-1000   # two cores: hours for the base; resumable
#
# Parts, in order; all of them without an argument:
#   published    score what published systems wrote (columns of test), and the article's first sentence
#   base         pre-train: spans of an article are masked, the whole is written again; short pieces of articles first,
#                which is where it learns to read its source; every other part starts from it
#   rows-8000    to abstracts with all rows: all weights, LoRA, adapters, biases, prefix; 3 seeds
#   rows-1000    the same with 1,000 rows
#   scratch      all weights from random ones, with all rows
#
# The checkpoint is the one with the lowest loss on valid. Scores are ROUGE-1, -2 and -L of test, F1 in per cent, not
# stemmed, as the paper of these data has them. What is done is kept; each part ends with its table. All knobs are
# variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#EXTRA[@]}" = 0 ] || die "takes no flags of fairseq-train; see --help"
# shellcheck source=translation_lib.sh
. "$ROOT/scripts/translation_lib.sh"

SHARED=${FAIRSEQ_PEFT_SHARED:-$ROOT/../shared}  # where data lie
RAW=${RAW:-$SHARED/data/orangesum}              # {train,valid,test}.tsv.xz with the columns of SOURCE and TARGET
SOURCE=${SOURCE:-article}                       # what is read
TARGET=${TARGET:-abstract}                      # what is written: abstract or title
SYSTEMS=${SYSTEMS:-barthez,mbarthez,mbart,camembert2camembert} # columns of test with what others wrote; none: no such columns
WORK=${WORK:-$ROOT/runs/summarization}          # where everything lands
SEEDS=${SEEDS:-1 2 3}                           # seeds of the runs
METHODS=${METHODS:-full lora adapter bitfit prefix} # methods
JOBS=${JOBS:-1}                                 # runs at once
THREADS=${THREADS:-$((($(getconf _NPROCESSORS_ONLN) + JOBS - 1) / JOBS))} # CPU threads of each: the cores, shared out
DEVICE=${DEVICE:-cpu}                           # cpu or cuda
PRECISION=${PRECISION:-auto}                    # fp32, bf16, or auto: the faster one here
FORK=${FORK:-1}                                 # 1: programs are forks of one process; 0: each imports everything itself
VOCAB_SIZE=${VOCAB_SIZE:-8000}                  # pieces
LAYERS=${LAYERS:-4}                             # of each stack
WIDTH=${WIDTH:-256}                             # of the model; its feed-forward maps are 4 times as wide
POSITIONS=${POSITIONS:-256}                     # pieces of an article that are read
TARGET_POSITIONS=${TARGET_POSITIONS:-256}       # pieces of an abstract, at most
MAX_TOKENS=${MAX_TOKENS:-4096}                  # of a batch
HELD_OUT=${HELD_OUT:-200}                       # articles of train that the base is validated on
SHORT=${SHORT:-32}                              # pieces of the blocks that the base begins with
UPDATES_SHORT=${UPDATES_SHORT:-800}             # of the base on them, half a batch each
UPDATES_BASE=${UPDATES_BASE:-8000}              # of the base on blocks of POSITIONS, and from scratch
EPOCHS=${EPOCHS:-}                              # of each run, at most; empty: 10 with 8,000 rows, 30 with 1,000
UPDATES=${UPDATES:-6000}                        # the same
TEST_ROWS=${TEST_ROWS:-1500}                    # rows of test that the models write for
BEAM=${BEAM:-4}                                 # of the search
LR_BASE=${LR_BASE:-1e-3}                        # peak learning rates: of the base, and from scratch
LR_FULL=${LR_FULL:-5e-4}                        # all weights
LR_LORA=${LR_LORA:-3e-3}                        # rank 16 on all linear maps
LR_ADAPTER=${LR_ADAPTER:-2e-3}                  # bottleneck 64
LR_BITFIT=${LR_BITFIT:-5e-3}                    # biases
LR_PREFIX=${LR_PREFIX:-1e-2}                    # 20 positions in each attention

PARTS=("${ARGS[@]+"${ARGS[@]}"}")
[ "${#PARTS[@]}" -gt 0 ] || PARTS=(published base rows-8000 rows-1000 scratch)
for part in "${PARTS[@]}"; do
  case $part in
    published | base | scratch) ;;
    rows-*[!0-9]* | rows-0* | rows-) die "'$part' is no part: give a number of rows, such as rows-1000" ;;
    rows-*) ;;
    *) die "'$part' is no part: give some of published, base, rows-8000, rows-1000 (any number) and scratch" ;;
  esac
done
for method in $METHODS; do rate_of "$method" >/dev/null; done
if [ "$DRY_RUN" != 1 ]; then
  [ -e "$RAW/train.tsv.xz" ] || die "RAW=$RAW has no train.tsv.xz. Expected {train,valid,test}.tsv.xz"
fi

BASE="$WORK/base/checkpoint_best.pt" TEXT="$WORK/text" PAIRS="$WORK/data-bin/pairs" METRICS=rouge
REFERENCES=("test=$TEXT/test.$TARGET")
SEARCH=(--max-len-a 0 --max-len-b 80 --no-repeat-ngram-size 3 --max-source-positions "$POSITIONS" --truncate-source)
COMMON=(--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas "(0.9,0.98)"
  --clip-norm 1 --dropout 0.1 --num-workers 0 --no-epoch-checkpoints --log-format simple --log-interval 100
  --max-tokens "$MAX_TOKENS")
[ "$DEVICE" != cpu ] || COMMON+=(--cpu)
CUT=(--max-source-positions "$POSITIONS" --truncate-source)  # in pieces; an abstract is never cut
WRITTEN=$((POSITIONS > TARGET_POSITIONS ? POSITIONS : TARGET_POSITIONS))  # a block of the base, or an abstract
SIZES=(--share-all-embeddings --max-source-positions "$POSITIONS" --max-target-positions "$WRITTEN")
for half in encoder decoder; do
  SIZES+=("--$half-layers" "$LAYERS" "--$half-embed-dim" "$WIDTH" "--$half-ffn-embed-dim" $((4 * WIDTH)) "--$half-attention-heads" 4)
done

texts() {  # columns as files of lines, and a dictionary with the piece that stands for what is masked
  local split rows=()
  [ ! -e "$TEXT/done" ] || return 0
  for split in train valid test; do
    [ "$split" != test ] || rows=(--rows "$TEST_ROWS")
    peft_cli table-columns "$RAW/$split.tsv.xz" "$TEXT/$split" --columns "$SOURCE,$TARGET" ${rows[@]+"${rows[@]}"}
  done
  run touch "$TEXT/done"
}

pairs() { printf %s "$TEXT/$1.$SOURCE:$TEXT/$1.$TARGET"; }  # SPLIT

prepare() {  # ROWS: articles and abstracts, so many of train
  texts
  if [ ! -e "$PAIRS/done" ]; then
    peft_cli prepare-pairs "$PAIRS" -s "$SOURCE" -t "$TARGET" --vocab-size "$VOCAB_SIZE" --symbols "<mask>" --train "$(pairs train)" \
      --valid "$(pairs valid)" --test "$(pairs test)"
    run touch "$PAIRS/done"
  fi
  [ ! -e "$WORK/data-bin/$1/done" ] || return 0
  peft_cli prepare-pairs "$WORK/data-bin/$1" -s "$SOURCE" -t "$TARGET" --spm "$PAIRS/sentencepiece.bpe.model" --dict "$PAIRS/dict.txt" \
    --train-rows "$1" --train "$(pairs train)" --valid "$(pairs valid)" --test "$(pairs test)"
  run touch "$WORK/data-bin/$1/done"
}

denoise() {  # DIRECTORY PIECES UPDATES MAX_TOKENS [FLAGS...]: a third of a block's pieces, in spans of 3 on average, become one <mask> each
  local out="$1" pieces="$2" updates="$3" tokens="$4"
  shift 4
  [ ! -e "$out/done" ] || return 0
  run mkdir -p "$out"
  program train "$WORK/data-bin/base" --user-dir "$ROOT/fairseq_peft" --task denoising --arch bart_full --precision "$PRECISION" --save-dir "$out" \
    --log-file "$out/train.log" --seed 1 "${SIZES[@]}" --tokens-per-sample "$pieces" --sample-break-mode none --mask 0.3 \
    --mask-length span-poisson --poisson-lambda 3 --replace-length 1 --mask-random 0.1 --rotate 0 --permute-sentences 0 \
    --lr-scheduler polynomial_decay --lr "$LR_BASE" --max-update "$updates" "${COMMON[@]}" --max-tokens "$tokens" "$@"
  run touch "$out/done"
}

base() {  # blocks of an article are masked and written again
  if [ ! -e "$WORK/data-bin/base/done" ]; then
    peft_cli prepare-corpus "$TEXT/train.$SOURCE" --out "$WORK/corpus" --spm "$PAIRS/sentencepiece.bpe.model" --dict "$PAIRS/dict.txt" \
      --valid-lines "$HELD_OUT"
    run rm -rf "$WORK/data-bin/base"
    fairseq_cli preprocess --only-source --srcdict "$PAIRS/dict.txt" --trainpref "$WORK/corpus/train.pieces" \
      --validpref "$WORK/corpus/valid.pieces" --destdir "$WORK/data-bin/base"
    run touch "$WORK/data-bin/base/done"
  fi
  denoise "$WORK/base-short" "$SHORT" "$UPDATES_SHORT" $((MAX_TOKENS / 2)) --warmup-updates $((UPDATES_SHORT / 4)) \
    --total-num-update $((2 * UPDATES_SHORT)) --disable-validation  # the rate falls to half: training goes on
  denoise "$WORK/base" "$POSITIONS" "$UPDATES_BASE" "$MAX_TOKENS" --warmup-updates $((UPDATES_BASE / 10 + 1)) \
    --total-num-update "$UPDATES_BASE" --finetune-from-model "$WORK/base-short/checkpoint_last.pt"
}

cell() {  # METHOD SEED
  local rate epochs updates every warmup flags=()
  rate=$(rate_of "$1")
  case ${DATA##*/} in 8000) epochs=10 ;; *) epochs=30 ;; esac
  schedule "${DATA##*/}" "$POSITIONS"
  case $1 in
    lora) flags+=(--peft-targets all-linear --lora-rank 16) ;;
    adapter) flags+=(--adapter-bottleneck 64) ;;
    prefix) flags+=(--prefix-num-tokens 20) ;;
  esac
  adapt "$DATA" "$BASE" "$1" "$2" --arch "bart_$1" ${flags[@]+"${flags[@]}"} "${CUT[@]}" --lr-scheduler polynomial_decay --lr "$rate" \
    --total-num-update "$updates" --max-epoch "$epochs" --max-update "$updates" --warmup-updates "$warmup" \
    --validate-interval "$every" --save-interval "$every" -- "${REFERENCES[@]}"
}

table() {  # RUNS PART: with what others wrote beside
  local beside=()
  [ ! -e "$WORK/published.json" ] || beside=(--beside "$WORK/published.json")
  peft_cli text-report "$1" ${beside[@]+"${beside[@]}"} --command "bash scripts/summarization.sh $2"
}

part() {
  local rows
  printf '\n== %s\n' "$1"
  case $1 in
    published)
      [ "$SYSTEMS" != none ] || return 0
      run mkdir -p "$WORK"
      peft_cli score "$RAW/test.tsv.xz" --columns "$SYSTEMS" --reference-column "$TARGET" --first-sentence "$SOURCE" --out "$WORK/published.json" ;;
    base)
      prepare 8000
      base
      [ -e "$WORK/base-scores/scores.json" ] || score_checkpoint "$WORK/data-bin/8000" "$BASE" "$WORK/base-scores" "${REFERENCES[@]}" ;;
    scratch)
      prepare 8000
      run mkdir -p "$WORK/scratch/full/seed1"
      [ -e "$WORK/scratch/full/seed1/done" ] ||
        program train "$WORK/data-bin/8000" --user-dir "$ROOT/fairseq_peft" --task translation --arch bart_full --precision "$PRECISION" \
          --save-dir "$WORK/scratch/full/seed1" --log-file "$WORK/scratch/full/seed1/train.log" --seed 1 "${SIZES[@]}" --truncate-source \
          --lr-scheduler polynomial_decay --lr "$LR_BASE" --warmup-updates $((UPDATES_BASE / 10 + 1)) --total-num-update "$UPDATES_BASE" \
          --max-update "$UPDATES_BASE" "${COMMON[@]}"
      run touch "$WORK/scratch/full/seed1/done"
      [ -e "$WORK/scratch/full/seed1/scores.json" ] ||
        score_checkpoint "$WORK/data-bin/8000" "$WORK/scratch/full/seed1/checkpoint_best.pt" "$WORK/scratch/full/seed1" "${REFERENCES[@]}"
      table "$WORK/scratch" "$1" ;;
    rows-*)
      rows=${1#rows-}
      RUNS="$WORK/$1" DATA="$WORK/data-bin/$rows"
      if [ "$DRY_RUN" != 1 ]; then
        [ -e "$WORK/base-scores/scores.json" ] || die "the part $1 starts from the base: run the part base before"
        mkdir -p "$RUNS/base/seed1"
        cp "$WORK/base-scores/scores.json" "$RUNS/base/seed1"
      fi
      prepare "$rows"
      for method in $METHODS; do for seed in $SEEDS; do echo "$method $seed"; done; done | in_waves cell "$RUNS/logs"
      table "$RUNS" "$1" ;;
  esac
}

choose_precision
run mkdir -p "$WORK"
start_worker "$WORK"
for part in "${PARTS[@]}"; do part "$part"; done
