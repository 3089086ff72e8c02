#!/usr/bin/env bash
# Usage: RAW=TEXT SAVE_DIR=DIR scripts/pretrain.sh [--dry-run] [RAW...] [-- FLAGS OF fairseq-train]
#
# Raw text -> a pre-trained roberta_small, by fairseq's own masked_lm task: tokenizer, held-out lines,
# fairseq-preprocess, embeddings from counts, then training on short blocks and on long ones, so that
# all positions get trained. One optimizer and one learning-rate curve run through both phases.
#
# Leaves in SAVE_DIR: model.pt (no optimizer state), dict.txt, sentencepiece.bpe.model (or what BPE reads) and
# pretrain.jsonl (updates, tokens, seconds, losses in nats); work/ beside them may be deleted then.
# Running it again with the same knobs goes on from the last checkpoint; model.pt means all is done.
#
# Example, 2 cores, minutes:
#   RAW=novels-fr.txt.xz SAVE_DIR=checkpoints/fr UPDATES_SHORT=800 UPDATES_LONG=200 scripts/pretrain.sh
#
# The recipe of docs/pretraining.md, which goes on from a checkpoint: one thread, 75 minutes beside other work, 20.5
# million tokens. 28 million more took 106 minutes, lowered the loss and not the errors of classifiers.
#   RAW="novels-fr.txt.xz reviews.txt:10" EXCLUDE="valid.txt test.txt" SAVE_DIR=checkpoints/fr-more \
#     START=model.pt SPM=sentencepiece.bpe.model DICT=dict.txt THREADS=1 LR=8e-4 WARMUP=300 \
#     TOKENS_PER_UPDATE=4096 TOKENS_SHORT=128 UPDATES_SHORT=4200 UPDATES_LONG=800 scripts/pretrain.sh -- \
#     --mask-prob 0.25 --dropout 0 --attention-dropout 0
#
# That of ../shared/models/roberta_small_fr_modern, on a GPU: whole words, many of them masked at first, sources read as
# often as they are worth, large batches, a constant rate with a linear end.
#   RAW="press.txt films.txt:1.5 games.txt:4 own-train.txt:6" EXCLUDE="valid.txt test.txt" EXCLUDE_ENDS=80 SAVE_DIR=checkpoints/fr-modern \
#     SPM=sentencepiece.bpe.model DICT=dict.txt TOKENS_PER_UPDATE=65536 LR=1.2e-3 WARMUP=300 DECAY=0.45 \
#     WHOLE_WORDS=1 TOKENS_SHORT=128 MASK_SHORT=0.3 UPDATES_SHORT=16600 MASK_LONG=0.18 UPDATES_LONG=6465 \
#     INIT_EMBEDDINGS=random scripts/pretrain.sh -- --dropout 0 --attention-dropout 0
#
# Knobs (environment variables):
#   RAW=                 UTF-8 text, one sentence or paragraph a line; .xz too; several with spaces
#                        between them, or as arguments; FILE:8 is read eight times a pass, FILE:2.5 on average
#                        two and a half times
#   EXCLUDE=             text to leave out, as the task's valid and test: lines, or columns of RAW
#   EXCLUDE_ENDS=0       and what shares so many characters with such a text at its begin or end, as copies
#                        do that were cut or corrected
#   SAVE_DIR=            folder to write
#   START=               a model.pt to go on from; needs its SPM or BPE (and DICT)
#   SPM= DICT=           a given sentencepiece model and its dict.txt (DICT may be left out); without
#                        SPM one of VOCAB_SIZE pieces is trained
#   BPE= BPE_DIR= BPE_CASED=0   or another way to cut text: gpt2, subword_nmt, fastbpe, bert or none (tokens with
#                        spaces between them), the folder with its files and dict.txt, 1 for a cased BERT
#   VOCAB_SIZE=31998     gives 32,000 rows: 4 specials and <mask>, less sentencepiece's own 3
#   VALID_LINES=500      lines held out at random (SEED)
#   INIT_EMBEDDINGS=svd  or random, of a fresh model
#   TOKENS_SHORT=64      block length of the first phase, for UPDATES_SHORT=4400 updates
#   TOKENS_LONG=256      block length of the second, and the positions of the model; UPDATES_LONG=2700
#   TOKENS_PER_UPDATE=2048  makes the batch: 32 blocks of 64, 8 of 256
#   TOKENS_AT_ONCE=      where so many do not fit into memory: a part of them, such as 8192 of 65536; the gradients
#                        of an update's parts are summed
#   LR=6e-4 WARMUP=200   peak, updates to reach it; then straight down to 0 at the last update
#   DECAY=1              or a share of the updates: the rate stays at its peak, and falls in that last part
#   MASK_SHORT=0.15 MASK_LONG=0.15   share of the tokens that is masked in each phase
#   WHOLE_WORDS=0        1: words are masked as a whole, not piece by piece
#   SAVE_EVERY=500       updates from checkpoint to checkpoint (each is validated)
#   VALID_EVERY=500      updates from validation to validation
#   LOG_EVERY=20         updates a point of the training curve
#   SEED=1 THREADS=      threads default to the number of cores
#   ARCH=roberta_small ARCH_ARGS=    for example ARCH_ARGS="--encoder-layers 2 --encoder-embed-dim 128"
#   OPTIM_ARGS=          the optimizer and its flags, as words
#   PRECISION=auto       the faster one here of fp32 and bf16 (layers under autocast, weights in fp32)
#   HALF=0               1: model.pt in half precision
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"

RAW=${RAW:-}                                    # text files
EXCLUDE=${EXCLUDE:-}                            # text that must not be trained on
EXCLUDE_ENDS=${EXCLUDE_ENDS:-0}                 # characters of its begin or end that tell a copy; 0: whole lines only
SAVE_DIR=${SAVE_DIR:-}                          # where everything goes
START=${START:-}                                # checkpoint to go on from; empty: a fresh model
SPM=${SPM:-}                                    # sentencepiece model; empty: train one
DICT=${DICT:-}                                  # its dict.txt; empty: the model's order
BPE=${BPE:-}                                    # as fairseq's --bpe; empty: sentencepiece
BPE_DIR=${BPE_DIR:-}                            # folder with its files and dict.txt
BPE_CASED=${BPE_CASED:-0}                       # 1: a cased BERT
VOCAB_SIZE=${VOCAB_SIZE:-}                      # pieces of a trained one; empty: 31998
VALID_LINES=${VALID_LINES:-500}                 # held out
INIT_EMBEDDINGS=${INIT_EMBEDDINGS:-}            # svd or random; empty: svd, without START
TOKENS_SHORT=${TOKENS_SHORT:-64}                # block length, first phase
UPDATES_SHORT=${UPDATES_SHORT:-4400}            # its updates; 0 leaves it out
TOKENS_LONG=${TOKENS_LONG:-256}                 # block length, second phase; positions of the model
UPDATES_LONG=${UPDATES_LONG:-2700}              # its updates; 0 leaves it out
TOKENS_PER_UPDATE=${TOKENS_PER_UPDATE:-2048}    # batch size x block length
TOKENS_AT_ONCE=${TOKENS_AT_ONCE:-}              # tokens in memory at once; empty: those of an update
LR=${LR:-6e-4}                                  # peak learning rate
WARMUP=${WARMUP:-200}                           # updates up to it
DECAY=${DECAY:-1}                               # share of the updates in which the rate falls; 1: all behind WARMUP
MASK_SHORT=${MASK_SHORT:-0.15}                  # masked tokens of the first phase
MASK_LONG=${MASK_LONG:-0.15}                    # masked tokens of the second
WHOLE_WORDS=${WHOLE_WORDS:-0}                   # 1: mask whole words
SAVE_EVERY=${SAVE_EVERY:-500}                   # updates between checkpoints
VALID_EVERY=${VALID_EVERY:-500}                 # updates between validations
LOG_EVERY=${LOG_EVERY:-20}                      # updates between points of the curve
SEED=${SEED:-1}                                 # held-out lines, SVD, weights, order, masks
THREADS=${THREADS:-$(getconf _NPROCESSORS_ONLN)} # threads
ARCH=${ARCH:-roberta_small}                     # architecture
ARCH_ARGS=${ARCH_ARGS:-}                        # flags of it, words split at spaces
OPTIM_ARGS=${OPTIM_ARGS:---optimizer peft_adamw --adamw-betas (0.9,0.98) --adamw-eps 1e-6 --weight-decay 0.01}
PRECISION=${PRECISION:-auto}                    # fp32, bf16, or auto: the faster one here
HALF=${HALF:-0}                                 # 1: model.pt in half precision
PROGRESS_S=${PROGRESS_S:-8}                     # seconds between progress lines

read -ra RAW_FILES <<<"$RAW"
RAW_FILES+=("${ARGS[@]+"${ARGS[@]}"}")
read -ra EXCLUDE_FILES <<<"$EXCLUDE"
read -ra ARCH_WORDS <<<"$ARCH_ARGS"
read -ra OPTIM_WORDS <<<"$OPTIM_ARGS"
WORK=$SAVE_DIR/work
TOTAL=0
SCHEDULE=(--lr-scheduler polynomial_decay)
[ "$DECAY" = 1 ] || SCHEDULE=(--lr-scheduler warmup_stable_decay --decay-share "$DECAY")
WORDS=()
[ "$WHOLE_WORDS" = 0 ] || WORDS=(--mask-whole-words)

check_knobs() {
  local name
  [ "${#RAW_FILES[@]}" -gt 0 ] || die "RAW is empty; name the text to train on, see --help"
  [ -n "$SAVE_DIR" ] || die "SAVE_DIR is empty; name the folder to write, see --help"
  for name in VALID_LINES TOKENS_SHORT TOKENS_LONG TOKENS_PER_UPDATE SAVE_EVERY VALID_EVERY \
    LOG_EVERY THREADS PROGRESS_S; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name='${!name}' is not a whole number above 0"
  done
  for name in UPDATES_SHORT UPDATES_LONG WARMUP SEED EXCLUDE_ENDS; do
    [[ ${!name} =~ ^(0|[1-9][0-9]*)$ ]] || die "$name='${!name}' is not a whole number"
  done
  for name in MASK_SHORT MASK_LONG DECAY; do
    [[ ${!name} =~ ^(0?\.[0-9]*[1-9][0-9]*|1)$ ]] || die "$name='${!name}' is not a share, such as 0.3"
  done
  [[ $WHOLE_WORDS =~ ^[01]$ ]] || die "WHOLE_WORDS='$WHOLE_WORDS'; expected 0 or 1"
  TOTAL=$((UPDATES_SHORT + UPDATES_LONG))
  [ "$TOTAL" -gt "$WARMUP" ] ||
    die "UPDATES_SHORT + UPDATES_LONG is $TOTAL; expected more than WARMUP=$WARMUP"
  [ "$TOKENS_SHORT" -le "$TOKENS_LONG" ] ||
    die "TOKENS_SHORT=$TOKENS_SHORT is above TOKENS_LONG=$TOKENS_LONG, the positions of the model"
  [ "$TOKENS_PER_UPDATE" -ge "$TOKENS_LONG" ] ||
    die "TOKENS_PER_UPDATE=$TOKENS_PER_UPDATE is less than one block of TOKENS_LONG=$TOKENS_LONG"
  : "${TOKENS_AT_ONCE:=$TOKENS_PER_UPDATE}"
  [[ $TOKENS_AT_ONCE =~ ^[1-9][0-9]*$ ]] && [ "$TOKENS_AT_ONCE" -ge "$TOKENS_LONG" ] &&
    [ $((TOKENS_PER_UPDATE % TOKENS_AT_ONCE)) = 0 ] ||
    die "TOKENS_AT_ONCE='$TOKENS_AT_ONCE'; expected TOKENS_PER_UPDATE=$TOKENS_PER_UPDATE or a half, a third ... of it, \
and a block of TOKENS_LONG=$TOKENS_LONG or more"
  [ "$EXCLUDE_ENDS" = 0 ] || [ -n "$EXCLUDE" ] || die "EXCLUDE_ENDS would be ignored: EXCLUDE is empty"
  if [ -n "$START" ]; then
    [ -f "$START" ] || die "START=$START does not exist; name the model.pt to go on from"
    [ -n "$SPM$BPE$BPE_DIR" ] || die "START needs SPM, the sentencepiece model it was trained with, or its BPE"
    [ -z "$INIT_EMBEDDINGS" ] || die "INIT_EMBEDDINGS would be ignored: START has embeddings"
  fi
  case ${INIT_EMBEDDINGS:=svd} in
    svd | random) ;;
    *) die "INIT_EMBEDDINGS='$INIT_EMBEDDINGS'; expected svd or random" ;;
  esac
  [ -z "$DICT" ] || [ -n "$SPM$BPE$BPE_DIR" ] || die "DICT is given without SPM, the model it belongs to"
  [ -z "$VOCAB_SIZE" ] || [ -z "$SPM" ] || die "VOCAB_SIZE would be ignored: SPM is given"
  case $BPE_CASED in 0 | 1) ;; *) die "BPE_CASED=$BPE_CASED: expected 0 or 1" ;; esac
}

# What a checkpoint depends on; another set of knobs in the same folder is an error, not a mixture.
settings() {
  local name
  for name in START EXCLUDE BPE BPE_DIR; do # only where given: folders from before these knobs go on
    [ -z "${!name}" ] || printf '%s=%s\n' "$name" "${!name}"
  done
  [ "$DECAY" = 1 ] || printf 'DECAY=%s\n' "$DECAY"
  [ "$EXCLUDE_ENDS" = 0 ] || printf 'EXCLUDE_ENDS=%s\n' "$EXCLUDE_ENDS"
  [ "$TOKENS_AT_ONCE" = "$TOKENS_PER_UPDATE" ] || printf 'TOKENS_AT_ONCE=%s\n' "$TOKENS_AT_ONCE"
  [ "$MASK_SHORT,$MASK_LONG,$WHOLE_WORDS" = 0.15,0.15,0 ] ||
    printf 'MASK_SHORT=%s\nMASK_LONG=%s\nWHOLE_WORDS=%s\n' "$MASK_SHORT" "$MASK_LONG" "$WHOLE_WORDS"
  for name in SPM DICT VOCAB_SIZE VALID_LINES INIT_EMBEDDINGS TOKENS_SHORT UPDATES_SHORT TOKENS_LONG \
    UPDATES_LONG TOKENS_PER_UPDATE LR WARMUP SEED ARCH ARCH_ARGS OPTIM_ARGS PRECISION; do
    printf '%s=%s\n' "$name" "${!name}"
  done
  [ "$BPE_CASED" = 0 ] || printf 'BPE_CASED=1\n'
  printf 'RAW=%s\nEXTRA=%s\n' "${RAW_FILES[*]}" "${EXTRA[*]-}"
}

check_settings() {
  if [ -e "$WORK/data-bin" ]; then
    settings | cmp -s - "$WORK/settings" || die "$SAVE_DIR was begun with other knobs:
$(settings | diff - "$WORK/settings" | sed -n 's/^</  now: /p; s/^>/  then:/p')
Take another SAVE_DIR, or delete this one."
  elif [ "$DRY_RUN" != 1 ]; then
    mkdir -p "$WORK"
    settings >"$WORK/settings"
  fi
}

# progress LOG: the last point in fairseq's JSON lines; fairseq counts in bits, people in nats.
progress() {
  tail -c 20000 "$1" 2>/dev/null | awk -v total="$TOTAL" '
    function value(name) {
      if (!match($0, "\"" name "\": \"[^\"]*\"")) return ""
      return substr($0, RSTART + length(name) + 5, RLENGTH - length(name) - 6)
    }
    /\| train_inner \|/ { update = value("num_updates"); loss = value("loss"); speed = value("ups") }
    /\| valid \|/       { valid = value("valid_loss") }
    END {
      if (update == "") exit
      printf ", update %d of %d, train loss %.2f", update, total, loss * log(2)
      if (valid != "") printf ", valid %.2f", valid * log(2)
      if (speed > 0) printf ", %d s left", (total - update) / speed
    }'
}

# watched TEXT LOG CMD...: output to LOG, a progress line every PROGRESS_S seconds. The command
# stays in the foreground, so Ctrl-C reaches it.
watched() {
  local text=$1 log=$2 start=$SECONDS status=0
  shift 2
  if [ "$DRY_RUN" = 1 ]; then
    printf '# %s\n' "$text"
    "$@"
    return
  fi
  : >>"$log"
  while sleep "$PROGRESS_S" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    printf '  %s: %d s%s\n' "$text" $((SECONDS - start)) "$(progress "$log")"
  done &
  WATCHER=$!
  "$@" </dev/null >>"$log" 2>&1 || status=$?
  stop_watcher
  if [ "$status" -ne 0 ]; then
    tail -n 15 "$log" >&2
    die "'$text' failed with status $status; all of its output: $log"
  fi
  printf '%-60s %5d s%s\n' "$text" $((SECONDS - start)) "$(progress "$log" | sed 's/, 0 s left//')"
}

WATCHER=
stop_watcher() {
  [ -z "$WATCHER" ] || kill "$WATCHER" 2>/dev/null || true
  [ -z "$WATCHER" ] || wait "$WATCHER" 2>/dev/null || true
  WATCHER=
}
trap stop_watcher EXIT

# START's embeddings are rows by number: the same words have to have the same numbers.
check_start_dictionary() {
  local own line
  [ -n "$START" ] || return 0
  own=$(dirname "$START")/dict.txt
  [ -f "$own" ] || return 0
  line=$(diff <(cut -d' ' -f1 "$own") <(cut -d' ' -f1 "$WORK/text/dict.txt") | head -n 1) || true
  [ -z "$line" ] || die "START=$START comes with another dictionary: $own and ${DICT:-that of $SPM$BPE_DIR} differ \
from line ${line%%[acd,]*} on; give DICT=$own and its SPM or BPE"
}

prepare_text() {
  local flags=(--out "$WORK/text" --valid-lines "$VALID_LINES" --seed "$SEED" --threads "$THREADS")
  [ -z "$SPM" ] || flags+=(--spm "$SPM")
  [ -z "$DICT" ] || flags+=(--dict "$DICT")
  [ -z "$BPE" ] || flags+=(--bpe "$BPE")
  [ -z "$BPE_DIR" ] || flags+=(--bpe-dir "$BPE_DIR")
  [ "$BPE_CASED" = 0 ] || flags+=(--bpe-cased)
  [ -z "$VOCAB_SIZE" ] || flags+=(--vocab-size "$VOCAB_SIZE")
  [ -z "$EXCLUDE" ] || flags+=(--exclude "${EXCLUDE_FILES[@]}")
  [ "$EXCLUDE_ENDS" = 0 ] || flags+=(--exclude-ends "$EXCLUDE_ENDS")
  run rm -rf "$WORK/text" "$WORK/data-bin.tmp"
  watched "tokenizer and held-out lines" "$WORK/prepare.log" \
    peft_cli prepare-corpus "${RAW_FILES[@]}" "${flags[@]}"
  [ "$DRY_RUN" = 1 ] || check_start_dictionary
  watched "fairseq-preprocess" "$WORK/prepare.log" fairseq_cli preprocess --only-source \
    --srcdict "$WORK/text/dict.txt" --trainpref "$WORK/text/train.pieces" \
    --validpref "$WORK/text/valid.pieces" --destdir "$WORK/data-bin.tmp" --workers 1
  run rm -f "$WORK/text/train.pieces" "$WORK/text/valid.pieces"
  run cp -R "$WORK/text/." "$SAVE_DIR" # dict.txt, and what text is cut with
  run mv "$WORK/data-bin.tmp" "$WORK/data-bin"
}

# The dimension of the model, for the SVD: as a flag where one is given, else that of the architecture.
dimension() {
  local word previous='' dim=''
  for word in "${ARCH_WORDS[@]+"${ARCH_WORDS[@]}"}" "${EXTRA[@]+"${EXTRA[@]}"}"; do
    case $word in --encoder-embed-dim=*) dim=${word#*=} ;; esac
    [ "$previous" != --encoder-embed-dim ] || dim=$word
    previous=$word
  done
  if [ -n "$dim" ]; then printf -- '--dim %s\n' "$dim"; else printf -- '--arch %s\n' "$ARCH"; fi
}

svd_embeddings() {
  local dim=()
  read -ra dim <<<"$(dimension)"
  watched "embeddings from counts (PPMI, SVD)" "$WORK/prepare.log" \
    peft_cli svd-embeddings "$WORK/data-bin" "${dim[@]}" --out "$WORK/init.npz" --seed "$SEED" \
    --threads "$THREADS"
}

# A copy that was cut short would end every later start; the file it was copied from is whole.
repair_checkpoint() {
  local last=$1/checkpoint_last.pt file update newest='' most=-1
  [ -e "$last" ] || return 0
  "$PYTHON" -m zipfile -t "$last" >/dev/null 2>&1 && return
  for file in "$1"/checkpoint_*_*.pt; do # checkpoint_EPOCH_UPDATE.pt
    update=${file##*_}
    update=${update%.pt}
    [[ $update =~ ^[0-9]+$ ]] && [ "$update" -gt "$most" ] && newest=$file && most=$update
  done
  if [ -z "$newest" ]; then
    rm "$last"
  else
    cp "$newest" "$last.tmp"
    mv "$last.tmp" "$last"
  fi
}

# train_phase NAME LENGTH MASKED LAST_UPDATE PREVIOUS: goes on from its own last checkpoint, else from the
# PREVIOUS phase's (optimizer and schedule included, data from the start), else from scratch.
train_phase() {
  local name=$1 length=$2 masked=$3 last=$4 previous=$5 dir=$WORK/$1 start=()
  if [ -e "$dir/done" ]; then
    printf '%-60s  done before\n' "training on blocks of $length"
    return
  fi
  if [ "$DRY_RUN" != 1 ]; then
    mkdir -p "$dir"
    repair_checkpoint "$dir"
  fi
  if [ -e "$dir/checkpoint_last.pt" ]; then
    :
  elif [ -n "$previous" ]; then
    start=(--restore-file "$WORK/$previous/checkpoint_last.pt" --reset-dataloader --reset-meters)
  elif [ -n "$START" ]; then
    start=(--restore-file "$START" --reset-optimizer --reset-lr-scheduler --reset-dataloader
      --reset-meters)
  elif [ "$INIT_EMBEDDINGS" = svd ]; then
    start=(--init-embeddings "$WORK/init.npz")
  fi
  watched "training on blocks of $length" "$dir/train.log" fairseq_cli train "$WORK/data-bin" \
    --user-dir "$ROOT/fairseq_peft" --task masked_lm --criterion masked_lm --mask-prob "$masked" \
    "${WORDS[@]+"${WORDS[@]}"}" --sample-break-mode none --tokens-per-sample "$length" \
    --arch "$ARCH" --max-positions "$TOKENS_LONG" "${ARCH_WORDS[@]+"${ARCH_WORDS[@]}"}" \
    --batch-size $((TOKENS_AT_ONCE / length)) "${PARTS[@]+"${PARTS[@]}"}" --required-batch-size-multiple 1 --num-workers 0 \
    --precision "$PRECISION" "${OPTIM_WORDS[@]}" --clip-norm 1.0 --lr "$LR" "${SCHEDULE[@]}" \
    --warmup-updates "$WARMUP" --total-num-update "$TOTAL" --max-update "$last" \
    --seed "$SEED" --save-dir "$dir" --save-interval 1000000 --validate-interval 1000000 \
    --save-interval-updates "$SAVE_EVERY" --keep-interval-updates 1 \
    --validate-interval-updates "$VALID_EVERY" --log-format json --log-interval "$LOG_EVERY" \
    "${start[@]+"${start[@]}"}" "${EXTRA[@]+"${EXTRA[@]}"}"
  run touch "$dir/done"
}

finish() {
  local final=$1 logs=() half=()
  [ "$UPDATES_SHORT" = 0 ] || logs+=("$TOKENS_SHORT:$WORK/short/train.log")
  [ "$UPDATES_LONG" = 0 ] || logs+=("$TOKENS_LONG:$WORK/long/train.log")
  [ "$HALF" != 1 ] || half=(--half)
  peft_cli pretraining-curve "${logs[@]}" --out "$SAVE_DIR/pretrain.jsonl"
  peft_cli export-checkpoint "$final/checkpoint_last.pt" --out "$SAVE_DIR/model.pt" \
    "${half[@]+"${half[@]}"}"
}

check_knobs
PARTS=()
[ "$TOKENS_AT_ONCE" = "$TOKENS_PER_UPDATE" ] || PARTS=(--update-freq $((TOKENS_PER_UPDATE / TOKENS_AT_ONCE)))
check_settings
if [ -e "$SAVE_DIR/model.pt" ]; then
  printf '%s is there: nothing to do\n' "$SAVE_DIR/model.pt"
  exit 0
fi
export OMP_NUM_THREADS=$THREADS

[ -e "$WORK/data-bin" ] || prepare_text
[ -n "$START" ] || [ "$INIT_EMBEDDINGS" = random ] || [ -e "$WORK/init.npz" ] || svd_embeddings
previous=
if [ "$UPDATES_SHORT" -gt 0 ]; then
  train_phase short "$TOKENS_SHORT" "$MASK_SHORT" "$UPDATES_SHORT" ""
  previous=short
fi
if [ "$UPDATES_LONG" -gt 0 ]; then
  train_phase long "$TOKENS_LONG" "$MASK_LONG" "$TOTAL" "$previous"
  previous=long
fi
finish "$WORK/$previous"
