"""Score texts against references: BLEU, chrF, ROUGE.

TEXTS is a file with a text a line, or the output of fairseq-generate. Its rows are those of the
references one after the other; each gets scores of its own. With --columns, TEXTS is a table (.tsv,
.jsonl, packed ones, too), and each column is scored against --reference-column.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fairseq_peft.errors import InputError

COLUMN_FLAGS = ("reference_column", "first_sentence")


def add_arguments(parser) -> None:
    parser.add_argument("texts", metavar="TEXTS", type=Path, help="what was generated")
    parser.add_argument(
        "references", metavar="[NAME=]FILE", nargs="*", help="a reference a line, for a part of it"
    )
    parser.add_argument("--metrics", help="of bleu,chrf,rouge (bleu,chrf; of columns rouge)")
    parser.add_argument("--columns", help="of a table: those to score, for example ours,theirs")
    parser.add_argument("--reference-column", help="of a table: the reference")
    parser.add_argument(
        "--first-sentence", metavar="COLUMN", help="of a table: score its first sentence as well"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the scores")


def run(args) -> int:
    from fairseq_peft.files import whole
    from fairseq_peft.text import text_scores

    metrics = (args.metrics or ("rouge" if args.columns else "bleu,chrf")).split(",")
    for metric in metrics:
        if metric not in text_scores.METRICS:
            raise InputError(
                f"--metrics has {metric!r}: expected some of {', '.join(text_scores.METRICS)}."
            )
    parts = of_columns(args) if args.columns else of_files(args)
    scores = {name: text_scores.score(*texts, metrics) for name, texts in parts.items()}
    signatures = {}
    for found in scores.values():
        signatures = found.pop("signatures")
    names = [name for name in next(iter(scores.values())) if name != "rows"]
    width = max(map(len, scores))
    lines = [f"{'':{width}}  {'rows':>6}" + "".join(f"{name:>8}" for name in names)]
    for part, found in scores.items():
        numbers = "".join(f"{found[name]:8.2f}" for name in names)
        lines.append(f"{part:{width}}  {found['rows']:6}{numbers}")
    lines += [f"{name}: {text}" for name, text in signatures.items()]
    if args.out:
        content = {"parts": scores, "signatures": signatures}
        with whole(args.out) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def of_files(args) -> dict:
    """Name of a part -> (texts, references)."""
    from fairseq_peft.text import rows, sources, text_scores

    for flag in COLUMN_FLAGS:
        if getattr(args, flag):
            raise InputError(f"--{flag.replace('_', '-')} would be ignored without --columns.")
    if not args.references:
        raise InputError("No references: give a file, or --columns of a table.")
    texts = text_scores.generated(rows.Reader().lines(args.texts))
    parts, total = {}, 0
    files = sources.named(args.references, "references", lambda path: path.name)
    for name, path in files.items():
        references = rows.Reader().lines(path)
        parts[name] = texts[total : total + len(references)], references
        total += len(references)
    if total != len(texts):
        raise InputError(f"{args.texts} has {len(texts)} texts, the references {total}.")
    return parts


def of_columns(args) -> dict:
    """Name of a column -> (texts, references)."""
    from fairseq_peft.text import rows, tables, text_scores

    if args.references:
        raise InputError(
            f"{args.references[0]} would be ignored: with --columns, references are a column."
        )
    if not args.reference_column:
        raise InputError("--columns without --reference-column: name the column to score against.")
    asked = dict.fromkeys(args.columns.split(","))
    columns = [(name, name) for name in asked]
    if args.first_sentence:
        columns.append((f"first sentence of {args.first_sentence}", args.first_sentence))
    found = {}
    for name, column in columns:
        wanted = tables.Columns(text=column, text2=args.reference_column)
        table = tables.read(args.texts, rows.Reader(), wanted, ("text", "text2"))
        texts = [record.fields["text"] for record in table.records]
        if name != column:
            texts = [text_scores.first_sentence(text) for text in texts]
        found[name] = texts, [record.fields["text2"] for record in table.records]
    return found
