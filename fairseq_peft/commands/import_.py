"""Make an adapter folder of a folder of Hugging Face PEFT.

The folder is what save_pretrained of a RobertaForSequenceClassification with LoRA, DoRA, IA3,
prompt tuning or prefix tuning wrote, or of a BART, mBART, M2M-100 or NLLB with LoRA, DoRA or IA3.
The base is the fairseq checkpoint that the Hugging Face model was converted from or to; its
dict.txt and sentencepiece model, or the files of another --bpe, are looked for beside it.

Of T5, GPT-2, BLOOM and the other models of --arch hf_causal_lm and hf_seq2seq the base is their
folder, and its tokenizer.json reads the text.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.commands.export import check_out
from fairseq_peft.errors import InputError


def add_arguments(parser):
    parser.add_argument("folder", type=Path, help="the folder of PEFT")
    parser.add_argument("out", type=Path, help="the adapter folder to write")
    parser.add_argument(
        "--base", type=Path, required=True, help="the base: model.pt, or the folder of a model"
    )
    parser.add_argument("--dict", type=Path, help="its dictionary (dict.txt beside the base)")
    parser.add_argument(
        "--spm", type=Path, help="its sentencepiece model (sentencepiece.bpe.model beside the base)"
    )
    parser.add_argument(
        "--labels",
        help="class names with commas, in the order of the outputs (labels.json of the folder, "
        "else LABEL_0,LABEL_1,..., as Hugging Face names them); of a base that is a folder, the "
        "words that are its answers",
    )
    parser.add_argument(
        "--pairs", action="store_true", help="it classifies pairs of texts, not single ones"
    )
    parser.add_argument("--source-lang", help="of an encoder-decoder: what it reads")
    parser.add_argument("--target-lang", help="of an encoder-decoder: what it writes")
    parser.add_argument(
        "--langs",
        help="languages with commas that an encoder-decoder's task added to its dictionary, in "
        "their order (those that the base names)",
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")
    finetuned.add_trust_argument(parser)


def run(args) -> int:
    from fairseq_peft.adapters import seal

    check_out(args.out, args.force, (args.folder, args.base), seal.PARTS)

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.adapters import folder as adapter_folder

    imported, copies = of_folder(args) if args.base.is_dir() else of_checkpoint(args)
    adapter_folder.write(args.out, imported.tensors, imported.description, copies)
    told = imported.description
    classes = f"; classes {', '.join(told['labels'])}" if "labels" in told else ""
    sys.stdout.write(
        f"{args.out}: --peft {told['method']['peft']}, {len(imported.tensors)} tensors{classes}\n"
    )
    return 0


def of_folder(args):
    """What is imported on a folder of Hugging Face's, and the files that go with it."""
    from fairseq_peft.hf import peft_import

    for name in ("dict", "spm", "pairs", "source_lang", "target_lang", "langs"):
        if getattr(args, name):
            raise InputError(
                f"--{name.replace('_', '-')} would be ignored: {args.base} is a folder of Hugging "
                "Face's, with a tokenizer of its own. Leave it out."
            )
    labels = args.labels.split(",") if args.labels else ()
    imported = peft_import.load_of_folder(args.folder, args.base, labels)
    return imported, imported.copies


def of_checkpoint(args):
    """What is imported on a checkpoint of fairseq's, and the files that go with it."""
    from fairseq_peft.adapters import folder as adapter_folder
    from fairseq_peft.hf import peft_import
    from fairseq_peft.text import bpe

    finetuned.check_file(args.base)
    beside = args.base.parent
    place = None if args.spm else bpe.locate(beside)
    tokenizer = args.spm or beside / adapter_folder.TOKENIZER
    files = place.files if place else {adapter_folder.TOKENIZER: tokenizer}
    dictionary = args.dict or beside / adapter_folder.DICTIONARY
    for flag, path in (("--dict", dictionary), *(("--spm", path) for path in files.values())):
        if not path.is_file():
            raise InputError(f"{path} does not exist. Give the file of the base with {flag}.")
    imported = peft_import.load(
        args.folder,
        args.base,
        dictionary,
        labels=args.labels.split(",") if args.labels else None,
        num_texts=2 if args.pairs else 1,
        trust=args.trust_checkpoint,
        languages={
            name: getattr(args, name)
            for name in ("source_lang", "target_lang")
            if getattr(args, name)
        },
        added=args.langs.split(",") if args.langs else (),
    )
    return imported, {**(imported.copies or {adapter_folder.DICTIONARY: dictionary}), **files}
