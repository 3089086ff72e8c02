"""How a folder reads text: which ``--bpe`` it is of, and the files of it.

A folder says it in ``bpe.json`` (``{"bpe": "bert", "cased": true}``). Without that file, a
sentencepiece model, or GPT-2's two files, speak for themselves. Nothing is ever downloaded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of, whole
from fairseq_peft.text import raw_text
from fairseq_peft.text.rows import SPECIALS
from fairseq_peft.text.subwords import KINDS, Bert, Gpt2, Nothing, Sentencepiece, Subwords

TOLD = "bpe.json"
#: All files that reading text may take, besides dict.txt.
FILES = (TOLD, *dict.fromkeys(name for kind in KINDS.values() for name in kind.names))


class Place(NamedTuple):
    """Where a way to read text lies.

    Attributes:
        kind: of ``KINDS``.
        files: name in a folder -> the file; bpe.json, too, where there is one.
        options: as bpe.json has them.
    """

    kind: str
    files: dict[str, Path]
    options: dict

    def load(self) -> Subwords:
        """Raises InputError where a file is damaged."""
        return KINDS[self.kind](self.files, self.options)


def locate(folder: Path | str, kind: str | None = None) -> Place | None:
    """Where ``folder`` has what reads text; None where it does not say. No file is opened but
    bpe.json.

    Args:
        kind: what ``--bpe`` says; None to ask the folder.

    Raises:
        InputError: there is no such kind, or a file of it is missing.
    """
    folder = Path(folder)
    if (folder / TOLD).is_file():
        told = _told(folder / TOLD)
        if kind in (None, told["bpe"]):
            kind = told.pop("bpe")
            return Place(kind, {**_files(folder, kind), TOLD: folder / TOLD}, told)
    if kind is not None:
        return Place(kind, _files(folder, kind), {})
    for known in (Sentencepiece, Gpt2):
        if all((folder / name).is_file() for name in known.names):
            return Place(known.kind, _files(folder, known.kind), {})
    return None


def find(folder: Path | str, kind: str | None = None) -> Subwords | None:
    """How ``folder`` reads text; None where it does not say.

    Args:
        kind: what ``--bpe`` says; None to ask the folder.

    Raises:
        InputError: there is no such kind, or a file of it is missing or damaged.
    """
    place = locate(folder, kind)
    return None if place is None else place.load()


def sentencepiece(model: Path | str) -> Sentencepiece:
    """A sentencepiece model by its file.

    Raises:
        InputError: it does not exist, or is none.
    """
    return Sentencepiece({raw_text.MODEL_NAME: Path(model)})


def _files(folder: Path, kind: str) -> dict[str, Path]:
    if kind not in KINDS:
        raise InputError(f"--bpe {kind} is unknown. Known: {', '.join(KINDS)}.")
    files = {}
    for name, others in KINDS[kind].names.items():
        found = [folder / each for each in (name, *others) if (folder / each).is_file()]
        if not found:
            raise InputError(
                f"{folder / name} does not exist, and --bpe {kind} reads text with it. Put it "
                "there, as it was published with the checkpoint."
            )
        files[name] = found[0]
    return files


def _told(path: Path) -> dict:
    try:
        told = json_of(path.read_bytes())
    except (OSError, ValueError):
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("bpe"), str):
        raise InputError(
            f'{path} is damaged: expected {{"bpe": "..."}} with one of {", ".join(KINDS)}. Copy it '
            "again."
        )
    return told


def write(subwords: Subwords, folder: Path) -> None:
    """Put the files of ``subwords`` into ``folder``, so that ``find`` finds the same there."""
    for name, path in subwords.files.items():
        if name != TOLD:
            raw_text.copy(path, folder / name)
    if subwords.kind != Sentencepiece.kind:
        told = json.dumps({"bpe": subwords.kind, **subwords.options})
        with whole(folder / TOLD) as temporary:
            temporary.write_text(told + "\n", encoding="utf-8")


def write_with_dictionary(
    subwords: Subwords, dictionary: Path | None, folder: Path, texts: Iterable[str] = ()
) -> None:
    """As ``write``, with dict.txt: the one that is given, or one made for the purpose.

    Args:
        texts: from which a dictionary is made, the most frequent pieces first, where the files do
            not say which pieces there are.

    Raises:
        InputError: the dictionary does not exist, or belongs to something else.
    """
    if subwords.kind == Sentencepiece.kind:
        raw_text.copy_tokenizer(subwords.files[raw_text.MODEL_NAME], dictionary, folder)
        return
    if dictionary is None:
        pieces = subwords.vocabulary()
        if pieces is None:
            counts = Counter(piece for text in texts for piece in subwords.encode([text])[0])
            pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))
        pieces = [piece for piece in pieces if piece not in SPECIALS]  # fairseq has rows for them
        with whole(folder / raw_text.DICT_NAME) as temporary:
            temporary.write_bytes("".join(f"{piece} 1\n" for piece in pieces).encode("utf-8"))
    else:
        check_dictionary(subwords, dictionary)
        raw_text.copy(dictionary, folder / raw_text.DICT_NAME)
    write(subwords, folder)


def check_dictionary(subwords: Subwords, dictionary: Path) -> None:
    """Raise InputError where ``dictionary`` is no file, or has no piece of ``subwords``."""
    if not dictionary.is_file():
        raise InputError(f"{dictionary} does not exist. Expected the checkpoint's own dict.txt.")
    lines = dictionary.read_bytes().decode("utf-8", "replace").split("\n")
    known = subwords.known()
    if known and known.isdisjoint(line.split(" ")[0] for line in lines):
        raise InputError(
            f"{dictionary} has no piece of --bpe {subwords.kind}. Give the dict.txt that was made "
            "with its files."
        )


# Flags


def add_arguments(parser) -> None:
    """``--bpe``, and what it needs."""
    files = (f"{kind}: {', '.join(KINDS[kind].names)}" for kind in KINDS if KINDS[kind].names)
    parser.add_argument(
        "--bpe", choices=list(KINDS), help="how text is cut into pieces, as fairseq names it"
    )
    parser.add_argument(
        "--bpe-dir",
        type=Path,
        metavar="DIR",
        help=f"folder with its files, and dict.txt ({'; '.join(files)})",
    )
    parser.add_argument(
        "--bpe-cased", action="store_true", help="with --bpe bert: case and accents count"
    )


def given(args) -> str | None:
    """The flag that names a finished way to read text; None where one is to be trained."""
    if args.spm:
        return "--spm"
    trains = args.bpe in (None, Sentencepiece.kind) and not args.bpe_dir and not args.dict
    return None if trains else "--bpe"


def from_arguments(args) -> tuple[Subwords | None, Path | None]:
    """What the flags name, ``--spm`` and ``--dict`` among them, and its dict.txt; None for what
    they leave open.

    Raises:
        InputError: flags contradict each other, or a file is missing or damaged.
    """
    dictionary = getattr(args, "dict", None)
    if args.bpe_cased and args.bpe != Bert.kind:
        raise InputError("--bpe-cased goes with --bpe bert alone. Leave it out, or give both.")
    if args.spm:
        if args.bpe not in (None, Sentencepiece.kind) or args.bpe_dir:
            other = f"--bpe-dir {args.bpe_dir}" if args.bpe_dir else f"--bpe {args.bpe}"
            raise InputError(f"{other} and --spm name two ways to read text. Leave one out.")
        return sentencepiece(args.spm), dictionary
    if args.bpe is None and args.bpe_dir is None:
        return None, dictionary
    folder = args.bpe_dir or (dictionary.parent if dictionary else None)
    if folder is None and args.bpe == Sentencepiece.kind:
        return None, None  # one is trained
    if folder is None and args.bpe != Nothing.kind:
        raise InputError(
            f"--bpe {args.bpe} without its files. Give their folder with --bpe-dir "
            f"({', '.join(KINDS[args.bpe].names)} and dict.txt)."
        )
    if args.bpe_cased:
        found = locate(folder, args.bpe)._replace(options={"cased": True}).load()
    else:
        found = Nothing({}) if folder is None else find(folder, args.bpe)
    if found is None:
        raise InputError(
            f"{folder} does not say how it reads text. Give --bpe, one of {', '.join(KINDS)}."
        )
    if dictionary is None and folder is not None and (folder / raw_text.DICT_NAME).is_file():
        dictionary = folder / raw_text.DICT_NAME
    return found, dictionary
