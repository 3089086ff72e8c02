"""Write text for text: a text a line in, what the model writes a line out, in order.

For models of fairseq's tasks translation and language_modeling, and of text_to_text and causal_lm.
What is written is what fairseq-generate writes of the same rows; text is read as the data were
(sentencepiece or another bpe of the adapter folder; without one, a line is pieces with spaces).

Row n of the output belongs to line n of the input; an empty line has an empty answer, and an end
of line within an answer becomes a space. JSON lines (--format jsonl): text, and score, the log
likelihood in nats by the number of tokens to the power of --lenpen.

With several adapters, --adapter books=DIR --adapter films=DIR2, a line is the name of one, a tab,
and the text.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from fairseq_peft.commands import predict, serve
from fairseq_peft.text import sources

#: Flags of fairseq's generator -> type, help.
SEARCH = {
    "beam": (int, "beams (5; 1 with --sampling)"),
    "lenpen": (float, "length penalty: below 1 favours short texts (1)"),
    "max_len_a": (float, "longest: a times the length of the source, and b (0)"),
    "max_len_b": (int, "(200, or --max-answer-tokens of the training run)"),
    "min_len": (int, "shortest (1, or 0 for models of Hugging Face's)"),
    "no_repeat_ngram_size": (int, "no n words in a row come twice (0: they may)"),
    "temperature": (float, "above 1 flattens what is likely (1)"),
    "sampling_topk": (int, "with --sampling: from the k likeliest alone"),
    "sampling_topp": (float, "with --sampling: from the likeliest that make up this probability"),
}


def add_arguments(parser):
    parser.add_argument("file", nargs="?", default="-", help="text, a line a row; - for stdin (-)")
    parser.add_argument(
        "--out", type=Path, help="write to this file, when all is done (default: to stdout)"
    )
    parser.add_argument(
        "--base",
        type=Path,
        help="the base checkpoint, a folder of Hugging Face's, or, without --adapter, a checkpoint "
        "that was trained",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="adapter folder that training wrote; with a name, once for each",
    )
    parser.add_argument(
        "--data", type=Path, help="without --adapter: the data folder, where it has moved"
    )
    for name, (kind, text) in SEARCH.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--sampling", action="store_true", help="draw words, search no likeliest")
    parser.add_argument("--seed", type=int, default=1, help="of --sampling (%(default)s)")
    parser.add_argument("--format", choices=["text", "jsonl"], default="text", help="(%(default)s)")
    predict.add_batch_arguments(parser, batch_size=16, window=512)


def run(args) -> int:
    predict.check_batch_arguments(args)
    folders = folders_of(args.adapter)
    search = {name: getattr(args, name) for name in SEARCH if getattr(args, name) is not None}
    if args.sampling:
        search["sampling"] = True
    predict.check_output(args.out, args.file)
    file = predict.open_source(args.file)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    generator = load(args, folders, search)
    name = "stdin" if args.file == "-" else args.file
    named = len(folders) > 1
    lines = predict.Lines(sources.lines(file, name), 2 if named else 1)
    rows, adapter = lines, None
    if named:
        names, texts = itertools.tee(lines)
        rows, adapter = (text for _, text in texts), (name for name, _ in names)
    progress = predict.Progress(lines, file, args.out is None and sys.stdout.isatty())
    how = {"batch_size": args.batch_size, "window": args.window, **search}
    try:
        with predict.sink(args.out) as out:
            for row in generator.stream(rows, adapter, **how):
                lines.answered += 1
                predict.put(out, shown(row, args.format), flush=lines.answered == lines.number)
                progress.show()
            predict.put(out, "", flush=True)
    except BrokenPipeError:
        pass  # whoever reads has had enough
    finally:
        progress.end()
        lines.report("generate")
        if generator.num_cut:
            cut = predict.count(generator.num_cut, "texts")
            predict.warn(f"{cut} longer than the model reads, and cut.", "generate")
    return 0


def folders_of(given: list[str]) -> dict:
    """Name -> folder; one that stands alone needs no name."""
    if len(given) == 1 and (Path(given[0]).exists() or "=" not in given[0]):
        return {"default": Path(given[0])}
    return serve.named(given)


def load(args, folders, search):
    """The generator of the flags."""
    import logging

    # What is logged when a model is built for training is of no use here.
    logging.getLogger().setLevel(logging.WARNING)
    import torch

    from fairseq_peft.serving.generate import Generator, check_search

    check_search(search)
    predict.check_device(args.device)
    torch.manual_seed(args.seed)
    common = {"device": args.device, "allow_other_base": args.allow_other_base}
    (name, folder), *others = list(folders.items()) or [("default", None)]
    generator = Generator.load(args.base, folder, name=name, data=args.data, **common)
    for name, folder in others:
        generator.add(name, folder)
    return generator


def shown(row, format: str) -> str:
    """What is written of an answer."""
    if format == "jsonl":
        return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"
    return " ".join(row.text.splitlines()) + "\n"
