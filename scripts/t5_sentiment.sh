#!/usr/bin/env bash
# T5 on film reviews, the answer is a word: all weights, soft prompts, adapters and LoRA, beside PEFT's and AdapterHub's.
#
# Usage: t5_sentiment.sh [--dry-run] [--tiny | --small] [-- FLAGS OF fairseq-train]
#
#   bash scripts/t5_sentiment.sh --tiny                              # two cores, minutes: a small T5, made here first
#   bash scripts/t5_sentiment.sh --small                             # hours: one that has read all reviews of train
#   MODEL=t5-small/ DATA=aclImdb/ bash scripts/t5_sentiment.sh       # the published setting, from real weights
#
# --tiny and --small pre-train a T5 by span corruption on the reviews of train, and run each row on a part of them. DATA is
# the published folder (train/pos ...), a CSV with review and sentiment, or what prepare_data.sh reads. What is done is
# kept. Leaves table.md and table.json in OUT. The rows of PEFT and AdapterHub need .venv-peft and .venv-adapters, which
# `scripts/test.sh parity` makes; without them they are left out, and the output says so. All knobs are variables:
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TAKES_MADE="tiny small"
parse_args "$@"
[ "${#ARGS[@]}" = 0 ] || die "takes no arguments; see --help"

MODEL=${MODEL:-}                        # folder of T5-small: config.json, model.safetensors, tokenizer.json
DATA=${DATA:-}                          # the reviews; empty: data/imdb of FAIRSEQ_PEFT_SHARED
OUT=${OUT:-$ROOT/runs/t5_sentiment}     # where everything lands
SEEDS=${SEEDS:-1 2 3}                   # one run a row and seed
EPOCHS=${EPOCHS:-}                      # passes over train; empty: those of the setting
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}  # runs at once, a core each
ROWS=${ROWS:-}                          # only these, such as ours-full,ours-lora-1,PEFT-lora-1; empty: the report's ten
PEFT_PYTHON=${PEFT_PYTHON:-}            # a Python with PEFT; empty: .venv-peft
ADAPTERS_PYTHON=${ADAPTERS_PYTHON:-}    # a Python with AdapterHub's adapters; empty: .venv-adapters

FLAGS=()
[ -z "$ROWS" ] || FLAGS+=(--only "$ROWS")
[ -z "$PEFT_PYTHON" ] || FLAGS+=(--peft-python "$PEFT_PYTHON")
[ -z "$ADAPTERS_PYTHON" ] || FLAGS+=(--adapters-python "$ADAPTERS_PYTHON")
experiment t5_sentiment ${FLAGS[@]+"${FLAGS[@]}"}
