"""Write an adapter folder as another library reads it: --format hf-peft for Hugging Face PEFT, onnx
for ONNX Runtime.

hf-peft: LoRA (rsLoRA, ranks by pattern, PiSSA, OLoRA), DoRA, IA3, prompts before <s> and prefixes
with their own positions go there, of BART, mBART, M2M-100 and NLLB LoRA, DoRA and IA3; what PEFT
cannot express is refused with the reason. The base is not part of the folder: it is the same model,
converted (to-hf); of --arch hf_causal_lm and hf_seq2seq it is the folder that was trained on.

onnx: the whole classifier as one file, model.onnx, merged with its base where the method can be
merged, and the tokenizer beside it. It needs neither torch nor fairseq where it runs. Before it is
written, ONNX Runtime computes it, and what it predicts is compared with the model in fp32.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from fairseq_peft import folders
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES

FORMATS = ("hf-peft", "onnx")

#: What a folder of a model, or of PEFT, may hold, from here or from Hugging Face's library.
WRITTEN = re.compile(
    r"model\.(pt|onnx)|(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)|"
    r"(model|pytorch_model)\.(safetensors|bin)\.index\.json|"
    r"(adapter_config|added_tokens|bpe|classifier|config|encoder|generation_config|labels|"
    r"special_tokens_map|tokenizer|tokenizer_config|vocab)\.json|"
    r"dict(\.[\w-]+)?\.txt|vocab\.(txt|bpe)|merges\.txt|bpecodes|"
    r"(sentencepiece\.bpe|sentencepiece|spiece|tokenizer)\.model|"
    r"README\.md|chat_template\.jinja|\.gitattributes"
)


def add_arguments(parser):
    parser.add_argument("folder", type=Path, help="the folder adapter/ of a run")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="whose (%(default)s)")
    parser.add_argument(
        "--base-name",
        default="",
        help="hf-peft: path or name of the converted base, for AutoPeftModel to load ('')",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="onnx: products in 8 bits, a scale a channel; another model, a little",
    )
    parser.add_argument(
        "--check-text",
        type=Path,
        help="onnx: text, a row a line, to compare on (random tokens)",
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")
    finetuned.add_base_arguments(parser)


def run(args) -> int:
    check_out(args.out, args.force, (args.folder, args.base))
    ignored = {
        "hf-peft": {"--int8": args.int8, "--check-text": args.check_text},
        "onnx": {"--base-name": args.base_name},
    }
    for flag, value in ignored[args.format].items():
        if value:
            raise InputError(f"{flag} would be ignored with --format {args.format}. Leave it out.")
    found, model = finetuned.from_folder(
        args.folder,
        args.base,
        args.allow_other_base,
        args.trust_checkpoint,
        of_any_task=args.format == "hf-peft",
    )
    text = to_peft(args, found, model) if args.format == "hf-peft" else to_onnx(args, found, model)
    sys.stdout.write(f"{args.out}: {text}\n")
    return 0


def to_peft(args, found, model) -> str:
    """Write a folder of Hugging Face PEFT; what is in it."""
    from fairseq_peft.hf import peft_folder

    config, tensors = peft_folder.content(found, model)
    if args.base_name:
        config["base_model_name_or_path"] = args.base_name
    labels = found.description.get("labels")
    peft_folder.write(args.out, config, tensors, labels, found.description.get("kind", CLASSES))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    classes = f"; classes {', '.join(labels)}" if labels else ""
    return f"{config['peft_type']}, {len(tensors)} tensors, {size:,} bytes{classes}"


def to_onnx(args, found, model) -> str:
    """Write a folder for ONNX Runtime; what is in it, and how far it agrees with the model."""
    from fairseq_peft.serving import onnx_folder

    num_texts = found.description["input"]["num_texts"]
    rows = read_rows(args.check_text, num_texts) if args.check_text else ()
    agreement = onnx_folder.write(args.out, found, model, rows, args.int8)
    size = (args.out / onnx_folder.MODEL).stat().st_size
    kind = "int8" if args.int8 else "fp32"
    return (
        f"{onnx_folder.MODEL}, {kind}, {size:,} bytes; classes "
        f"{', '.join(found.description['labels'])}\n"
        f"compared with the model in fp32, {agreement}"
    )


def read_rows(path: Path, num_texts: int) -> list:
    """The rows of a file as ``fairseq-peft predict`` reads them, texts or pairs of them.

    Raises:
        InputError: it cannot be read, or has none.
    """
    from fairseq_peft.text import sources, streams

    with streams.open_source(str(path)) as file:
        lines = streams.Lines(sources.lines(file, str(path)), num_texts)
        rows = list(lines)
    lines.report("export")
    if not rows:
        raise InputError(f"--check-text {path} is empty. Give a row a line, or leave it out.")
    return rows


def check_out(
    out: Path, force: bool, read: Iterable[Path | None], written: re.Pattern = WRITTEN
) -> None:
    """Raise InputError where the folder ``out`` is not to be written: it is there and nobody said
    ``--force``, or holds what is nothing like the files that are written, and would be lost.

    Args:
        read: files and folders that the command reads, as far as they were given.
        written: names of the files that it may write.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Give the name of the folder to write.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise InputError(f"{out} exists. Give another name, or --force to write over it.")
    place = out.resolve()
    for path in filter(None, read):
        if place in (path.resolve(), *path.resolve().parents):
            raise InputError(f"{out} holds {path}, which is read. Give another folder to write.")
    others = [
        path.name
        for path in sorted(out.iterdir())
        if not folders.is_litter(path) and not (path.is_file() and written.fullmatch(path.name))
    ]
    if others:
        raise InputError(
            f"{out} holds {others[0]}, which is none of the files that are written there, and "
            "would be lost. Move it, or give another folder."
        )
