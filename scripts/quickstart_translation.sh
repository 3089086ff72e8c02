#!/usr/bin/env bash
# From nothing to a table: make two languages up, pre-train a translator, move it to another domain, compare.
#
# Usage: scripts/quickstart_translation.sh [--dry-run]
#
# A small transformer learns to translate general sentences. It is then moved to those of the court with 600 rows:
# all of its weights, LoRA, adapters; with three seeds (METHODS="bitfit prefix" adds biases and prefixes). The table
# says how well it translates the court, and what it has forgotten of the general domain. Minutes on 2 cores; no
# download. Safe to run again: what is done is kept. Everything lands in WORK.
# All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#ARGS[@]}" = 0 ] && [ "${#EXTRA[@]}" = 0 ] || die "takes no arguments; see --help"
# shellcheck source=translation_lib.sh
. "$ROOT/scripts/translation_lib.sh"

WORK=${WORK:-$ROOT/quickstart-translation}  # where everything lands
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}  # runs at once, one core each
THREADS=${THREADS:-1}                       # CPU threads of each
SEEDS=${SEEDS:-1 2 3}                       # seeds of the runs
METHODS=${METHODS:-full lora adapter}       # methods
UPDATES_BASE=${UPDATES_BASE:-500}           # of pre-training
UPDATES=${UPDATES:-400}                     # of each run
GENERAL=${GENERAL:-12000}                   # general sentences to pre-train on
TEST=${TEST:-300}                           # sentences of each domain to translate
VOCAB_SIZE=${VOCAB_SIZE:-480}               # pieces of both languages
PRECISION=${PRECISION:-fp32}                # of all training: fp32 (the base by stock fairseq), bf16, or auto: the faster one here
BEAM=${BEAM:-4}                             # of the search
FORK=${FORK:-1}                             # 1: programs are forks of one process; 0: each imports everything itself
LR_FULL=${LR_FULL:-2e-3}                    # peak learning rates
LR_LORA=${LR_LORA:-5e-3}                    # rank 32 on all linear maps and the words
LR_ADAPTER=${LR_ADAPTER:-5e-3}              # bottleneck 64, and rank 32 on the words
LR_BITFIT=${LR_BITFIT:-1e-2}                # biases, and rank 32 on the words
LR_PREFIX=${LR_PREFIX:-1e-2}                # 20 positions in each attention, and rank 32 on the words

RAW="$WORK/raw" RUNS="$WORK/runs" DATA="$WORK/data-bin" BASE="$WORK/base/checkpoint_last.pt"
PARTS=("court=$RAW/court/test.xx" "general=$RAW/general/test.xx")
# Validated once, at the end: the number of updates is fixed, and no checkpoint is chosen.
COMMON=(--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas "(0.9,0.98)"
  --clip-norm 1 --dropout 0.1 --num-workers 0 --validate-interval 100000 --save-interval 100000 --no-epoch-checkpoints
  --log-format simple --log-interval 100 --cpu)
TINY=(--share-all-embeddings --encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 256
  --decoder-ffn-embed-dim 256 --encoder-attention-heads 4 --decoder-attention-heads 4)
started=$SECONDS
for method in $METHODS; do rate_of "$method" >/dev/null; done
choose_precision
headline() { printf '\n== %s\n' "$1"; }

cell() {  # METHOD SEED
  local rate arch=transformer_$1 flags=() words=(--peft-targets embed_tokens --lora-rank 32 --lora-alpha 4)
  rate=$(rate_of "$1")
  # A third of the court's pieces occur in no general sentence: their rows of the embedding are as they were drawn, so
  # rows must train whatever the method. A row moves by a sum over the whole rank, so the words have a small alpha: with
  # 32 in both, LoRA lost 5 points of BLEU. Adapters without the words reach half of what they do with them; so all
  # methods but full have them.
  case $1 in
    lora) flags=(--peft-targets "all-linear,embed_tokens" --lora-rank 32 --lora-alpha 64 --lora-alpha-pattern embed_tokens=4) ;;
    adapter) arch=transformer_peft flags=(--peft "adapter,lora" --adapter-style parallel --adapter-bottleneck 64 "${words[@]}") ;;
    bitfit) arch=transformer_peft flags=(--peft "bitfit,lora" "${words[@]}") ;;
    prefix) arch=transformer_peft flags=(--peft "prefix,lora" --prefix-num-tokens 20 "${words[@]}") ;;
  esac
  adapt "$DATA/court" "$BASE" "$1" "$2" --arch "$arch" --lr "$rate" --lr-scheduler polynomial_decay \
    --total-num-update "$UPDATES" --warmup-updates $((UPDATES / 10)) --max-tokens 1000 --max-update "$UPDATES" ${flags[@]+"${flags[@]}"} -- "${PARTS[@]}"
}

run mkdir -p "$WORK"
start_worker "$WORK"
headline "Data: two languages, two domains"
[ -e "$RAW/court/test.xx" ] || peft_cli make-demo-data "$RAW" --task translation --general "$GENERAL" --test "$TEST"
if [ ! -e "$DATA/court/done" ]; then
  peft_cli prepare-pairs "$DATA/general" -s en -t xx --vocab-size "$VOCAB_SIZE" \
    --train "$RAW/general/train.en:$RAW/general/train.xx" --valid "$RAW/general/valid.en:$RAW/general/valid.xx"
  peft_cli prepare-pairs "$DATA/court" -s en -t xx --spm "$DATA/general/sentencepiece.bpe.model" \
    --train "$RAW/court/train.en:$RAW/court/train.xx" --valid "$RAW/court/valid.en:$RAW/court/valid.xx" \
    --test "$RAW/court/test.en:$RAW/court/test.xx" "$RAW/general/test.en:$RAW/general/test.xx"
  run touch "$DATA/court/done"
fi

headline "Pre-training on general sentences: $UPDATES_BASE updates"
train_base "$DATA/general" "$WORK/base" "${TINY[@]}" --lr 3e-3 --lr-scheduler inverse_sqrt --warmup-updates 100 \
  --max-tokens 2000 --max-update "$UPDATES_BASE"
[ -e "$RUNS/base/seed1/scores.json" ] || score_checkpoint "$DATA/court" "$BASE" "$RUNS/base/seed1" "${PARTS[@]}"

headline "To the court, with 600 rows: $METHODS"
for seed in $SEEDS; do for method in $METHODS; do echo "$method $seed"; done; done | in_waves cell "$WORK/logs"

headline "Table"
peft_cli text-report "$RUNS" --command "bash scripts/quickstart_translation.sh"
[ "$DRY_RUN" = 1 ] || printf '\nDone in %d s; the table is in %s/report.md\n' $((SECONDS - started)) "$RUNS"
