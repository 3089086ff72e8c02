"""Raw data with something before each text: its title, or the word that a model expects there.

RAW has {train,valid,test}.{review,label}, a text or a label a line, and so has OUT. The folder of
--titles has texts (NAME.review) and the title of each (NAME.headline); a row of any split whose
text is there gets that title, any other stays as it is. How many were found is said.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from fairseq_peft.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("raw", metavar="RAW", type=Path, help="folder with the texts and labels")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--titles", type=Path, metavar="DIR", help="folder with texts and titles")
    parser.add_argument("--prefix", default="", help="before each text, such as 'query: ' for E5")
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")


#: What it writes.
TEXTS = re.compile(r"(train|valid|test)\.(review|label)")


def run(args: argparse.Namespace) -> int:
    from fairseq_peft import folders
    from fairseq_peft.commands.export import check_out
    from fairseq_peft.text import corpus, titles
    from fairseq_peft.text.rows import Reader

    if not args.titles and not args.prefix:
        raise InputError("Nothing to put before the texts. Give --titles, --prefix, or both.")
    check_out(args.out, args.force, (args.raw, args.titles), TEXTS)
    reader, splits = (
        Reader(),
        [s for s in corpus.SPLITS if corpus.find(args.raw, f"{s}.review").is_file()],
    )
    if not splits or corpus.find(args.raw, "train.review2").is_file():
        raise InputError(
            f"{args.raw} has {'pairs of texts' if splits else 'no train.review'}. Expected "
            "{train,valid,test}.{review,label}, one text a row."
        )
    known = titles.read(args.titles) if args.titles else {}
    told = []
    with folders.replaced(args.out) as new:
        for split in splits:
            texts, labels = (
                reader.lines(corpus.find(args.raw, f"{split}.{name}"))
                for name in ("review", "label")
            )
            if len(texts) != len(labels):
                raise InputError(
                    f"{args.raw / split}.review has {len(texts)} lines, {split}.label "
                    f"{len(labels)}. Line n of one belongs to line n of the other."
                )
            found = [known.get(titles.key(text)) for text in texts]
            texts = [
                args.prefix + (titles.before(title, text) if title else text)
                for text, title in zip(texts, found)
            ]
            for name, lines in (("review", texts), ("label", labels)):
                content = "".join(f"{line}\n" for line in lines)
                (new / f"{split}.{name}").write_bytes(content.encode())
            if args.titles:
                number = len(found) - found.count(None)
                told.append(f"{split}: {number:,} of {len(texts):,} rows have a title")
    sys.stdout.write("\n".join([str(args.out), *told]) + "\n")
    return 0
