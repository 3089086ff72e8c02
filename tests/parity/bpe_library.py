"""``python bpe_library.py PACKAGES FOLDER``, with this Python's own packages and, after them, those
of transformers in PACKAGES: how ``--bpe bert`` and a folder of ``to-hf`` read 1,000 lines.

FOLDER/hf        what to-hf wrote of a model with GPT-2's byte pairs, beside FOLDER/gpt2
FOLDER/told.json the lines that are read otherwise, by what reads them
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.append(sys.argv[1])
sys.path.append(str(Path(__file__).parents[1] / "support"))

import bpe_files  # noqa: E402
from fairseq.data import Dictionary, encoders  # noqa: E402
from many_scripts import lines  # noqa: E402
from transformers import AutoTokenizer, RobertaTokenizer  # noqa: E402

from fairseq_peft.data.text_encoder import TextEncoder  # noqa: E402
from fairseq_peft.text import bpe  # noqa: E402


def of_bert(folder: Path, cased: bool) -> list[str]:
    """The lines that fairseq's own encoder, on this library, cuts otherwise."""
    own = bpe_files.write("bert", folder, cased=cased)
    other, rows = encoders.build_bpe(argparse.Namespace(**own.fairseq_flags())), lines()
    found = own.encode(rows)
    assert max(map(len, found)) > 20
    return [row for row, pieces in zip(rows, found) if pieces != other.encode(row).split()]


def of_gpt2(folder: Path, tokenizer) -> list:
    """The lines, and pairs of them, that a tokenizer of the library gives other ids."""
    words = Dictionary.load(str(folder / "dict.txt"))
    words.add_symbol("<mask>")
    encoder = TextEncoder(bpe.find(folder), words)
    texts = lines(special=False)
    rows = [*((text,) for text in texts), *zip(texts[::2], texts[1::2])]
    ids = encoder.items(rows, [10**6] * len(rows))
    return [row for row, own in zip(rows, ids) if tokenizer(*row)["input_ids"] != own]


def main():
    folder = Path(sys.argv[2])
    hf, gpt2 = folder / "hf", folder / "gpt2"
    told = {
        "uncased": of_bert(folder / "uncased", False),
        "cased": of_bert(folder / "cased", True),
        "auto": of_gpt2(gpt2, AutoTokenizer.from_pretrained(hf)),
        "files": of_gpt2(gpt2, RobertaTokenizer(str(hf / "vocab.json"), str(hf / "merges.txt"))),
    }
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
