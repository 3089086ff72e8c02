"""Write an adapter folder as another library reads it: --format hf-peft for Hugging Face PEFT.

LoRA (rsLoRA, ranks by pattern, PiSSA, OLoRA), DoRA, IA3, prompts before <s> and prefixes with their
own positions go there; what PEFT cannot express is refused with the reason. The base is not part of
the folder: it is the same model, converted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES


def add_arguments(parser):
    parser.add_argument("folder", type=Path, help="the folder adapter/ of a run")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--format", choices=("hf-peft",), default="hf-peft", help="(%(default)s, the only one)"
    )
    parser.add_argument(
        "--base-name",
        default="",
        help="path or name of the converted base, which AutoPeftModel loads by itself ('')",
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")
    finetuned.add_base_arguments(parser)


def run(args) -> int:
    check_out(args.out, args.force)

    from fairseq_peft.hf import peft_folder

    found, model = finetuned.from_folder(
        args.folder, args.base, args.allow_other_base, args.trust_checkpoint
    )
    config, tensors = peft_folder.content(found, model)
    if args.base_name:
        config["base_model_name_or_path"] = args.base_name
    labels = found.description["labels"]
    peft_folder.write(args.out, config, tensors, labels, found.description.get("kind", CLASSES))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    sys.stdout.write(
        f"{args.out}: {config['peft_type']}, {len(tensors)} tensors, {size:,} bytes; classes "
        f"{', '.join(labels)}\n"
    )
    return 0


def check_out(out: Path, force: bool) -> None:
    """Raise InputError where the folder ``out`` is not to be written."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Give the name of the folder to write.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise InputError(f"{out} exists. Give another name, or --force to write over it.")
