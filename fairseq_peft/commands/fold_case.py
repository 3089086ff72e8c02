"""A sentencepiece model that reads text without regard to case, with the same pieces and ids.

Its checkpoints and its dict.txt go with it as before. Where labelled texts are few, words that only
differ in case (Décevant, NUL) are learned as one: give the new file as SPM to
scripts/prepare_data.sh. Prediction follows, since the data folder and adapter folders hold it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned


def add_arguments(parser):
    parser.add_argument("model", type=Path, help="sentencepiece model")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--force", action="store_true", help="write over the file, if it exists")


def run(args) -> int:
    from fairseq_peft.files import whole
    from fairseq_peft.text import spm_file

    finetuned.check_out_file(args.out, args.force)
    content = spm_file.fold_case(args.model)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(args.out) as temporary:
        temporary.write_bytes(content)
    sys.stdout.write(f"{args.out}: {args.model} without regard to case\n")
    return 0
