"""Small files of every ``--bpe``, laid out as they are published with checkpoints."""

from __future__ import annotations

import json
import random

from many_scripts import lines

from fairseq_peft.text import bpe

#: What ``write`` makes.
KINDS = ("gpt2", "subword_nmt", "fastbpe", "bert", "none")


def write(kind: str, folder, **options):
    """The files of a kind and a dict.txt that belongs to them, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    {"gpt2": gpt2, "subword_nmt": subword_nmt, "fastbpe": fastbpe, "bert": bert}.get(
        kind, lambda folder: None
    )(folder)
    found = bpe.locate(folder, kind)._replace(options=options).load()
    bpe.write(found, folder)
    if not (folder / "dict.txt").exists():
        bpe.write_with_dictionary(found, None, folder, lines(300))
    return bpe.find(folder)


def gpt2(folder):
    """As roberta.base has them: the names of dict.txt are numbers of encoder.json, in the order of
    how frequent they are, and rows that nothing has fill it up."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(lines(1000, seed=7), vocab_size=500, show_progress=False)
    trained.save_model(str(folder))
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    numbers = list(json.loads((folder / "encoder.json").read_text("utf-8")).values())
    random.Random(1).shuffle(numbers)
    rows = [f"{number} {1000 - row}" for row, number in enumerate(numbers)]
    rows += [f"madeupword{row:04} 0" for row in range(3)]
    (folder / "dict.txt").write_text("".join(f"{row}\n" for row in rows))


def pairs() -> list[str]:
    """What subword-nmt learns, the most frequent pair first: ``t h``, ``th e</w>``, ..."""
    import io

    from subword_nmt.learn_bpe import learn_bpe

    codes = io.StringIO()
    learn_bpe([" ".join(line.split()) for line in lines(1000, seed=7)], codes, 200)
    return codes.getvalue().split("\n")[1:-1]


def subword_nmt(folder):
    (folder / "bpecodes").write_text("\n".join(["#version: 0.2", *pairs(), ""]), "utf-8")


def fastbpe(folder):
    rows = (f"{pair} {1000 - rank}\n" for rank, pair in enumerate(pairs()))
    (folder / "bpecodes").write_text("".join(rows), "utf-8")


def bert(folder):
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trained.train_from_iterator(lines(1000, seed=7), vocab_size=500, show_progress=False)
    trained.save_model(str(folder))
