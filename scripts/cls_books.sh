#!/usr/bin/env bash
# The experiment on French book reviews: random weights against checkpoints, every method, few examples.
#
# Usage: cls_books.sh [--dry-run] [PART...]
#
#   JOBS=8 bash scripts/cls_books.sh                             # one GPU, or a large machine: everything
#   bash scripts/cls_books.sh main                                # two cores: the table first, resumable
#
# Parts, in the order in which a slow machine should make them; all of them but e5-256 without an argument:
#   main      scratch, full, LoRA, adapter, head alone, prompt with 3 seeds; then the first four with 5
#   targets   LoRA on fewer and on more maps
#   methods   every other method, and mix-and-match
#   epochs    the cells of main with one seed and 3, 12 and 24 epochs: does a method underfit?
#   few       scratch, full, LoRA, prompt, head alone from 16, 64 and 256 training rows, drawn by the seed; rates as main
#             picked, the last epoch's weights
#   titles    full and LoRA with each review's title before its text, at the rates that main picked
#   old       the cells of main from OLD, a poor checkpoint
#   hf        full and LoRA in Hugging Face's Trainer and PEFT, at the rates that main picked
#   e5        a published encoder of 12 layers, as multilingual-e5-small: head alone, LoRA, adapter, full; averages of three
#             checkpoints; LoRA on 256 positions in place of 512; LoRA and full with the review's title before its text
#   e5-256    its four methods on 256 positions, 3 epochs (6 of the head), at one rate each, test once: hours of two cores
#   reports   tables, figures and pictures of all that is there, to OUT
#
# Each part is a sweep (scripts/sweep.sh): what is done is skipped, what was interrupted goes on. Rates are picked on
# valid from the grids below, the checkpoint by valid, too. All knobs are variables, those of sweep.sh included:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#EXTRA[@]}" = 0 ] || die "takes no flags of fairseq-train; see --help"

SHARED=${FAIRSEQ_PEFT_SHARED:-$ROOT/../shared}         # where data and checkpoints lie
RAW=${RAW:-$SHARED/data/cls-books}                     # the reviews
MODEL=${MODEL:-$SHARED/models/roberta_small_fr_modern} # folder of model.pt, dict.txt, sentencepiece.bpe.model
OLD=${OLD:-$SHARED/models/roberta_small_fr}            # the same of the poor one
E5=${E5:-$SHARED/models/e5_small_fr}                    # folder of Hugging Face's library, with XLM-R's kind of tokenizer
E5_PREFIX=${E5_PREFIX:-query: }                        # what it expects before a text
TITLES=${TITLES:-$SHARED/data/headlines-fr}            # reviews and their titles
DATA_BIN=${DATA_BIN:-$ROOT/data-bin}                   # the binarised reviews land in DATA_BIN/cls-books
RUNS=${RUNS:-$ROOT/runs}                               # runs land in RUNS-<part>
OUT=${OUT:-$ROOT/docs/results}                         # the reports land in OUT/<part>
EPOCHS=${EPOCHS:-6}                                    # of every part but epochs and few
JOBS=${JOBS:-1}                                        # runs at once
PRECISION=${PRECISION:-auto}                           # fp32, bf16, or auto: the faster one here
LR_SCRATCH=${LR_SCRATCH:-1e-4 2e-4 3e-4}               # grids of learning rates; each cell's best on valid is taken
LR_FULL=${LR_FULL:-5e-5 1e-4 2e-4}                     # fine-tuning of all weights
LR_LORA=${LR_LORA:-1e-3 2e-3 4e-3}                     # LoRA on q_proj, v_proj
LR_ADAPTER=${LR_ADAPTER:-5e-4 1e-3 2e-3}               # adapters
LR_HEAD_ONLY=${LR_HEAD_ONLY:-1e-3 3e-3 1e-2}           # the head alone
LR_PROMPT=${LR_PROMPT:-3e-3 1e-2 3e-2}                 # soft prompt
E5_LR_FULL=${E5_LR_FULL:-2e-5 5e-5 1e-4}               # the part e5: fine-tuning of all weights
E5_LR_LORA=${E5_LR_LORA:-5e-4 1e-3 2e-3}               # LoRA
E5_SEEDS=${E5_SEEDS:-1 2 3}                            # of that part
export EPOCHS JOBS PRECISION LR_SCRATCH
MAIN="scratch/full pretrained/full pretrained/lora pretrained/adapter pretrained/head_only pretrained/prompt"
TITLED=$DATA_BIN/titled
FLAGS=()
PARTS=("${ARGS[@]+"${ARGS[@]}"}")
[ "${#PARTS[@]}" -gt 0 ] || PARTS=(main targets methods epochs few titles old hf e5 reports)

prepare() {  # FOLDER MODEL [RAW NAME POSITIONS]: the reviews in the pieces of a model, as FOLDER/NAME
  local name=${4:-cls-books}
  [ -e "$1/$name/label" ] || run env SPM="$2/sentencepiece.bpe.model" DICT="$2/dict.txt" DATA_BIN="$1" \
    MAX_POSITIONS="${5:-256}" bash "$ROOT/scripts/prepare_data.sh" "${3:-$RAW}" "$name"
}

e5_base() {  # for 512 positions, and for 256
  local base=$DATA_BIN/e5-base
  [ -e "$base/model.pt" ] || peft_cli from-hf "$E5" "$base"
  [ -e "$base/short.pt" ] || peft_cli export-checkpoint "$base/model.pt" --max-positions 256 --out "$base/short.pt"
  [ -e "$DATA_BIN/e5-raw/plain" ] || peft_cli prefix-texts "$RAW" "$DATA_BIN/e5-raw/plain" --prefix "$E5_PREFIX"
  prepare "$DATA_BIN/e5" "$base" "$DATA_BIN/e5-raw/plain" cls-books 512
}

e5_256() {
  local knobs=(DATA="$DATA_BIN/e5/cls-books" BASE="$DATA_BIN/e5-base/short.pt" EVAL_TEST=best)
  e5_base
  FLAGS=(-- --pooler mean)
  sweep e5-256 "$E5_SEEDS" "pretrained/full pretrained/lora pretrained/adapter" "${knobs[@]}" \
    EPOCHS=3 LR_FULL=5e-5 LR_LORA=1e-3 LR_ADAPTER=1e-3
  sweep e5-256 "$E5_SEEDS" pretrained/head_only "${knobs[@]}" EPOCHS=6 LR_HEAD_ONLY=3e-3
  FLAGS=()
}

e5() {  # base, data with and without titles, sweeps, averages
  local base=$DATA_BIN/e5-base data=$DATA_BIN/e5 raw=$DATA_BIN/e5-raw method seed from
  e5_base
  [ -e "$raw/titled" ] || peft_cli prefix-texts "$RAW" "$raw/titled" --prefix "$E5_PREFIX" --titles "$TITLES"
  prepare "$data" "$base" "$raw/titled" cls-books-titled 512
  local knobs=(BASE="$base/model.pt" LR_FULL="$E5_LR_FULL" LR_LORA="$E5_LR_LORA")
  FLAGS=(-- --pooler mean)
  sweep e5 "$E5_SEEDS" "pretrained/full pretrained/lora pretrained/adapter pretrained/head_only" \
    "${knobs[@]}" DATA="$data/cls-books" \
    FLAGS_LORA="--keep-best-checkpoints 3" FLAGS_ADAPTER="--keep-best-checkpoints 3"
  for method in lora adapter; do
    for seed in $E5_SEEDS; do
      from=$RUNS-e5/cls-books/pretrained
      [ -e "$from/$method-best3/seed$seed/result.json" ] ||
        peft_cli average "$from/$method/seed$seed" --best 3 --out "$from/$method-best3/seed$seed"
    done
  done
  sweep e5 "$E5_SEEDS" pretrained/lora_256 BASE="$base/short.pt" DATA="$data/cls-books" \
    FLAGS_LORA_256="--peft lora" LR_LORA_256="$E5_LR_LORA"
  sweep e5 "$E5_SEEDS" "pretrained/full pretrained/lora" "${knobs[@]}" DATA="$data/cls-books-titled"
  FLAGS=()
}

sweep() {  # PART SEEDS CELLS [VARIABLE=VALUE...]
  local part=$1 seeds=$2 cells=$3 rates=() name label
  shift 3
  for label in full lora adapter head_only prompt; do # a sweep refuses the rates of cells that it does not have
    name=LR_$(printf %s "$label" | tr "[:lower:]" "[:upper:]")
    case " $cells " in
      *" pretrained/$label "*) rates+=("$name=${!name}") ;;
      *) rates=(-u "$name" ${rates[@]+"${rates[@]}"}) ;;
    esac
  done
  run env "${rates[@]}" DATA="$DATA_BIN/cls-books" BASE="$MODEL/model.pt" RUNS="$RUNS-$part" SEEDS="$seeds" CELLS="$cells" \
    "$@" bash "$ROOT/scripts/sweep.sh" ${FLAGS[@]+"${FLAGS[@]}"}
}

picked() {  # METHOD: the rate of its runs in part main; scratch is full fine-tuning of random weights
  local cell=pretrained/$1
  [ "$1" != scratch ] || cell=scratch/full
  if [ "$DRY_RUN" = 1 ]; then
    echo RATE
    return
  fi
  "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["lr"])' \
    "$RUNS-main/cls-books/$cell/seed1/plan.json" 2>/dev/null ||
    die "the parts few, titles and hf take the rates that the part main picked, and $RUNS-main has no $cell of seed 1. Run main first."
}

fix_rates() {  # METHOD...: one rate each from here on, that which main picked
  local method rate
  for method in "$@"; do
    rate=$(picked "$method")
    printf -v "LR_$(printf %s "$method" | tr "[:lower:]" "[:upper:]")" %s "$rate"
  done
}

report() {  # PART [RAW NAME]
  [ -e "$RUNS-$1" ] || return 0
  run env RAW="${2:-$RAW}" NAME="${3:-cls-books}" OUT="$OUT/$1" bash "$ROOT/scripts/compare.sh" "$RUNS-$1"
}

part() {
  local rows method rate seed
  case $1 in
    main)
      sweep main "1 2 3" "$MAIN"
      sweep main "1 2 3 4 5" "scratch/full pretrained/full pretrained/lora pretrained/adapter" ;;
    targets)
      sweep targets "1 2 3" "pretrained/lora pretrained/lora_attention pretrained/lora_ffn pretrained/lora_all pretrained/lora_r64" \
        FLAGS_LORA_ATTENTION="--peft lora --peft-targets q_proj,k_proj,v_proj,out_proj" LR_LORA_ATTENTION="$LR_LORA" \
        FLAGS_LORA_FFN="--peft lora --peft-targets fc1,fc2" LR_LORA_FFN="$LR_LORA" \
        FLAGS_LORA_ALL="--peft lora --peft-targets all-linear" LR_LORA_ALL="5e-4 $LR_LORA" \
        FLAGS_LORA_R64="--peft lora --lora-rank 64 --lora-rslora" LR_LORA_R64="5e-4 $LR_LORA" ;;
    methods)
      sweep methods "1 2 3" "pretrained/last_layers pretrained/dora pretrained/adalora pretrained/vera pretrained/oft
        pretrained/compacter pretrained/mam pretrained/prefix pretrained/bitfit pretrained/layer_norm pretrained/ia3" \
        FLAGS_MAM="--peft prefix+adapter --adapter-style parallel --prefix-positions reserved" LR_MAM="1e-3 3e-3" ;;
    epochs)
      for rows in 3 12 24; do sweep "epochs-$rows" 1 "$MAIN" EPOCHS=$rows; done ;;
    few)
      # Who has 16 rows has no 400 others to choose with: the rates are those that main picked, the last epoch counts.
      fix_rates scratch full lora prompt head_only
      for rows in 16:60 64:40 256:20; do
        FLAGS=(-- --train-examples "${rows%:*}" --validate-interval "${rows#*:}")
        sweep "few-${rows%:*}" "1 2 3" "scratch/full pretrained/full pretrained/lora pretrained/prompt pretrained/head_only" \
          EPOCHS="${rows#*:}" BATCH_SIZE=8
      done
      FLAGS=() ;;
    titles)
      fix_rates full lora
      [ -e "$TITLED/raw" ] || peft_cli prefix-texts "$RAW" "$TITLED/raw" --prefix "" --titles "$TITLES"
      prepare "$TITLED" "$MODEL" "$TITLED/raw" cls-books-titled
      sweep titles "1 2 3" "pretrained/full pretrained/lora" DATA="$TITLED/cls-books-titled" ;;
    old)
      prepare "$DATA_BIN/old" "$OLD"
      sweep old "1 2 3" "$MAIN" DATA="$DATA_BIN/old/cls-books" BASE="$OLD/model.pt" ;;
    hf)
      for method in full lora; do
        rate=$(picked "$method")
        for seed in 1 2 3; do
          run env DATA="$DATA_BIN/cls-books" BASE="$MODEL/model.pt" RUNS="$RUNS-main" SEED=$seed METHOD="$method" LR="$rate" \
            bash "$ROOT/scripts/finetune_hf.sh"
        done
      done ;;
    e5) e5 ;;
    e5-256) e5_256 ;;
    reports)
      for method in main targets methods epochs-3 epochs-12 epochs-24 few-16 few-64 few-256 old e5 e5-256; do report "$method"; done
      report titles "$TITLED/raw" cls-books-titled
      curve epochs "epochs (batches of 16)" 3 12 24 "$EPOCHS=$RUNS-main"
      curve few "training rows" 16 64 256 "1600=$RUNS-main" ;;
  esac
}

curve() {  # PART X-LABEL NUMBERS... NUMBER=RUNS: accuracy against a number
  local part=$1 label=$2 number pairs=()
  shift 2
  for number in "$@"; do
    case $number in
      *=*) pairs+=("$number") ;;
      *) [ ! -e "$RUNS-$part-$number" ] || pairs+=("$number=$RUNS-$part-$number") ;;
    esac
  done
  [ "${#pairs[@]}" -lt 2 ] || peft_cli plot-accuracy "${pairs[@]}" --x-label "$label" --out "$OUT/$part/accuracy.png"
}

for name in "${PARTS[@]}"; do
  case $name in
    main | targets | methods | epochs | few | titles | old | hf | e5 | e5-256 | reports) ;;
    *) die "'$name' is no part: expected main, targets, methods, epochs, few, titles, old, hf, e5, e5-256 or reports" ;;
  esac
done
case " ${PARTS[*]} " in *" hf "*) hf_packages >/dev/null ;; esac # before hours of other parts
prepare "$DATA_BIN" "$MODEL"
# Each in a shell of its own: the rates that one sets are no other's.
for name in "${PARTS[@]}"; do (part "$name"); done
