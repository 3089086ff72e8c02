"""Write a fairseq checkpoint as a folder of Hugging Face's library, and check it there.

AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer and pipeline open the folder
by themselves (AutoModel, where there is no LM head). An encoder-decoder becomes BART, mBART or
M2M-100 (which NLLB is, too), for AutoModelForSeq2SeqLM. A language model, a model fine-tuned as a
whole, or a merged one (fairseq-peft merge) can go there; an adapter folder, given with --base, is
merged on the way. Both sides then compute on the same tokens, and read the same texts; a folder
that differs is not written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.commands.export import check_out
from fairseq_peft.errors import InputError


def add_arguments(parser):
    parser.add_argument(
        "checkpoint", type=Path, help="model.pt, for example, or adapter/ with --base"
    )
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--dict", type=Path, help="dict.txt (the one beside the checkpoint, or in adapter/)"
    )
    parser.add_argument(
        "--spm", type=Path, help="sentencepiece model (sentencepiece.bpe.model, as --dict)"
    )
    parser.add_argument(
        "--bpe-dir",
        type=Path,
        metavar="DIR",
        help="folder that has its dict.txt, and says how its text is read (that of the checkpoint)",
    )
    parser.add_argument("--head", help="the classification head, if there are several")
    parser.add_argument(
        "--labels",
        help="class names with commas, in the order of the outputs (the checkpoint's, else "
        "LABEL_0,LABEL_1,...)",
    )
    parser.add_argument(
        "--langs",
        help="languages with commas that an encoder-decoder's task added to its dictionary, in "
        "their order (those that the checkpoint names)",
    )
    parser.add_argument(
        "--check-text", type=Path, help="text whose lines are read on both sides, besides random"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare the sides; needs no transformers"
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")
    finetuned.add_base_arguments(parser)


def run(args) -> int:
    check_out(args.out, args.force, (args.checkpoint, args.base, args.dict, args.spm))
    if args.no_check and args.check_text:
        raise InputError("--check-text would be ignored with --no-check. Leave one out.")

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.adapters import folder as adapter_folder
    from fairseq_peft.hf import check, to_folder
    from fairseq_peft.text.raw_text import read_lines

    path = args.checkpoint
    if path.is_dir() and adapter_folder.read(path, of_any_task=True).is_of_folder:
        raise InputError(
            f"{path} belongs to a folder of Hugging Face's already. fairseq-peft merge makes one "
            "folder of both."
        )
    if not args.no_check:
        check.quiet()
    found = to_folder.convert(
        args.checkpoint,
        args.out,
        args.dict,
        args.spm,
        bpe_dir=args.bpe_dir,
        head=args.head,
        labels=args.labels.split(",") if args.labels else None,
        checked=not args.no_check,
        texts=list(read_lines([args.check_text])) if args.check_text else (),
        base=args.base,
        allow_other_base=args.allow_other_base,
        trust=args.trust_checkpoint,
        languages=args.langs.split(",") if args.langs else (),
    )
    sys.stdout.write("\n".join(report(args.out, found)) + "\n")
    if found.get("reason"):
        sys.stdout.write(
            f"the folder has no tokenizer: {found['reason']} Token ids are fairseq's\n"
        )
    return 0


def report(out: Path, found: dict):
    """What was written and compared, line by line."""
    kind = f"{found['kind']}, " if "kind" in found else ""
    classes = f"; classes {', '.join(found['labels'])}" if found["labels"] else ""
    head = "" if found.get("lm_head", True) or found["labels"] else "; no LM head"
    yield f"{out}: {kind}{found['tensors']} tensors{classes}{head}"
    names = ("features", "class logits", "LM logits")
    names += ("encoder features", "decoder features", "logits")
    compared = [name for name in names if name in found]
    if compared:
        yield "largest differences: " + ", ".join(f"{n} {found[n]:.1e}" for n in compared)
    if "tokens" in found:
        yield f"{found['tokens']} words are written alike, the likeliest each time"
    if "texts" in found:
        ties = f", {found['ties']} the same in another order" if found["ties"] else ""
        yield f"{found['texts']} texts have the same token ids{ties}"
