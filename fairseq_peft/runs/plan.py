"""The plan of a run: what decides its result, written before it trains and compared afterwards.

It is read off the command line that fairseq-train gets, so it says what really runs, whoever wrote
the flags, and off the files that it reads.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.runs.log import write_json
from fairseq_peft.scores import CLASSES, NUMBER
from fairseq_peft.text import pairs
from fairseq_peft.text.kinds import kind_of

logger = logging.getLogger(__name__)

NAME = "plan.json"

#: Flags of fairseq-train that do not change what a run computes: where it writes, what it shows.
_PLACES = (
    *("--user-dir", "--save-dir", "--log-format", "--log-interval", "--log-file"),
    *("--tensorboard-logdir", "--num-workers", "--method-label", "--finetune-from-model"),
    *("--keep-features", "--hf-model"),
)
#: The last batch of an epoch is left out, and then those that are not enough for an update.
SKIP_REMAINDER = "--skip-remainder-batch"
#: What a run that goes on has as it began.
_IDENTITY = ("data_sha256", "base_sha256", "seed")


@dataclass(frozen=True)
class Plan:
    """What decides the result of a run.

    Attributes:
        data: the data folder.
        data_sha256: of its dictionaries and rows.
        base: the path of the base, a checkpoint or a folder of Hugging Face's; None from scratch.
        base_sha256: of that file, or of the weights and the config in that folder.
        arch: the architecture, and with it the method.
        peft: the method, where several are given.
        seed: of head, method, batches and dropout.
        lr: peak learning rate.
        max_epoch, max_update: where training ends; 0: nowhere.
        batch_size, max_tokens, update_freq, world_size: what an update is made of.
        scheduler: name of the learning rate's schedule.
        warmup_updates, total_updates: of the schedule; total_updates 0: it has no end.
        metric: what chooses the checkpoint.
        subsets: the evaluated splits.
        precision: fp32 or bf16.
        flags: all other flags, each with its values.
        versions: of what a result depends on, to be told, not to be compared.
    """

    data: str
    data_sha256: str | None
    base: str | None
    base_sha256: str | None
    arch: str
    peft: str | None
    seed: int
    lr: str
    max_epoch: int
    max_update: int
    batch_size: int
    max_tokens: int
    update_freq: str
    world_size: int
    scheduler: str
    warmup_updates: int
    total_updates: int
    metric: str
    subsets: str
    precision: str
    flags: list[str]
    versions: dict

    @property
    def skip_remainder(self) -> bool:
        return SKIP_REMAINDER in self.flags


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of fairseq-train that a plan names, as fairseq reads them (the last one counts),
    and all other words."""
    parser = argparse.ArgumentParser(add_help=False, usage="the flags of fairseq-train")
    parser.add_argument("--arch", default="")
    parser.add_argument("--peft")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", default="0.25")
    parser.add_argument("--max-epoch", type=int, default=0)
    parser.add_argument("--max-update", type=int, default=0)
    parser.add_argument("--batch-size", "--max-sentences", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=0)
    parser.add_argument("--update-freq", default="1")
    parser.add_argument("--distributed-world-size", dest="world_size", type=int, default=1)
    parser.add_argument("--lr-scheduler", dest="scheduler", default="fixed")
    parser.add_argument("--warmup-updates", type=int, default=0)
    parser.add_argument("--total-num-update", dest="total_updates", type=int, default=0)
    parser.add_argument("--best-checkpoint-metric", dest="metric", default="loss")
    parser.add_argument("--valid-subset", dest="subsets", default="valid")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--skip-remainder-batch", dest="skip_remainder", action="store_true")
    for flag in _PLACES:
        parser.add_argument(flag)
    try:
        found, rest = parser.parse_known_args(words)
        if found.skip_remainder:  # a plan has it among its flags
            rest.append(SKIP_REMAINDER)
        found.lr = ",".join(_rate(rate) for rate in found.lr.strip("[]()").split(","))
        found.update_freq = ",".join(str(freq) for freq in frequencies(found.update_freq))
    except (SystemExit, ValueError):
        raise InputError(
            "The flags behind -- are none of fairseq-train: see the line above, and "
            "fairseq-train --help."
        ) from None
    if min(frequencies(found.update_freq), default=0) < 1:
        raise InputError(
            f"--update-freq {found.update_freq or 'is empty'}: expected 1 or more batches of an "
            "update. Give that, or leave the flag out."
        )
    return found, rest


def _rate(text):
    try:
        return f"{float(text):g}"
    except ValueError:  # fairseq-train refuses it; a dry run of a sweep has none yet
        return text


def frequencies(text: str) -> list[int]:
    """``--update-freq`` as a list, one entry an epoch, the last one for all others."""
    return [int(word) for word in text.strip("[]()").split(",") if word.strip()]


def num_updates(found: argparse.Namespace | Plan, batches: list[int]) -> int:
    """Updates of a run.

    Args:
        found: ``max_epoch``, ``max_update``, ``update_freq`` and ``skip_remainder`` count.
        batches: batches that each epoch has in one process; the last entry for all others.

    Raises:
        InputError: an epoch has none.
    """
    limits = (found.max_epoch, found.max_update)
    return count_updates(*limits, frequencies(found.update_freq), batches, found.skip_remainder)


def warmup_updates(num_updates: int, per_cent: float) -> int:
    """So many per cent of a run's updates."""
    return int(num_updates * per_cent / 100)


def count_updates(
    max_epoch: int, max_update: int, frequencies, batches, skip_remainder: bool = False
) -> int:
    """Updates of a run, as far as its limits tell (0: no limit); 0 if they do not.

    Args:
        frequencies: batches of an update, an entry an epoch; the last one for all others.
        batches: batches that each epoch has in one process; likewise.
        skip_remainder: ``SKIP_REMAINDER``.

    Raises:
        InputError: an epoch has none, which fairseq-train fails at.
    """

    def of_epoch(epoch):
        number = batches[min(epoch, len(batches) - 1)]
        frequency = frequencies[min(epoch, len(frequencies) - 1)]
        if not skip_remainder:
            return math.ceil(number / frequency)
        if number - 1 < frequency:
            raise InputError(
                f"{SKIP_REMAINDER} leaves an epoch of {number} batch(es) no update: the last batch "
                f"is left out, and an update takes {frequency}. Leave it out, or give a smaller "
                "--batch-size (BATCH_SIZE), or --update-freq."
            )
        return (number - 1) // frequency

    total = sum(map(of_epoch, range(max_epoch)))
    if not total:  # --max-epoch does not end it
        of_epoch(0)
    return min((limit for limit in (total, max_update) if limit > 0), default=0)


def make(words: list[str], files: bool = True, before: Plan | None = None) -> Plan:
    """The plan of a command line of fairseq-train, its program left out.

    Args:
        words: begin with the data folder.
        files: read the data and the base for their fingerprints.
        before: an earlier plan of the same folder, which knows the fingerprint of its base.

    Raises:
        InputError: there is no such base, or a flag has no value.
    """
    data, *rest = words
    found, flags = parse(rest)
    base = found.hf_model or found.finetune_from_model
    base_sha256 = before.base_sha256 if before and before.base == base else None
    if files and base and base_sha256 is None:
        base_sha256 = base_fingerprint(Path(base))
    known = {field.name for field in fields(Plan)}
    return Plan(
        data=data,
        data_sha256=data_fingerprint(Path(data)) if files else None,
        base=base,
        base_sha256=base_sha256,
        flags=_grouped(flags),
        versions=versions("fairseq_peft", "torch", "fairseq"),
        **{name: value for name, value in vars(found).items() if name in known},
    )


def read(folder: Path) -> Plan | None:
    """The plan of the run in ``folder``; None where it has none: an earlier version's, or none."""
    try:
        found = json_of((folder / NAME).read_bytes())
        found = {field.name: found[field.name] for field in fields(Plan)}
        for field in fields(Plan):
            if not _is_a(found[field.name], field.type):
                raise ValueError(f"{field.name} is not {field.type}")
        return Plan(**found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / NAME} cannot be read ({error}). Start the run afresh with --redo."
        ) from None


def of_begun(folder: Path) -> Plan | None:
    """As ``read``; None, too, where the run has not begun: a launch that was refused leaves its
    plan, which binds nobody."""
    begun = (folder / "run.json").exists() or (folder / "result.json").exists()
    return read(folder) if begun or any(folder.glob("checkpoint*.pt")) else None


def _is_a(value, annotation: str) -> bool:
    """Whether a value read off JSON is what the annotation of a field says: ``str | None``."""
    kinds = {"str": str, "int": int, "list[str]": list, "dict": dict, "None": type(None)}
    is_one = type(value) in [kinds[name] for name in annotation.split(" | ")]
    return is_one and (type(value) is not list or all(isinstance(one, str) for one in value))


def write(folder: Path, plan: Plan) -> None:
    write_json(str(folder / NAME), asdict(plan))


def begin(folder: Path, words: list[str], resumes: bool) -> Plan:
    """The plan of a run that starts, or goes on, in ``folder``, whoever started it; ``write`` it
    when training begins.

    What a run goes on with may differ in how long it is, in its learning rate and in its batches,
    as fairseq lets it; what differs is told. Data, base and seed are the same.

    Args:
        words: as ``make`` takes them.
        resumes: whether it goes on from a checkpoint in ``folder``.

    Raises:
        InputError: it would go on as another run.
    """
    before = read(folder) if (folder / NAME).exists() else None
    now = make(words, before=before)
    if before and resumes:
        if now.base is None:  # who goes on need not say what it once started from
            now = replace(now, base=before.base, base_sha256=before.base_sha256)
        differ = differences(before, now)
        other = {name: pair for name, pair in differ.items() if name in _IDENTITY}
        if other:
            raise InputError(
                f"{folder} holds another run: {sentence(other)}. Go on as it was begun, or start "
                "another run in another --save-dir."
            )
        if differ:
            logger.warning(f"{folder} goes on with another plan than before: {sentence(differ)}")
    return now


def differences(before: Plan, now: Plan) -> dict:
    """Field -> (before, now), where the two are not one run; of the flags, only those that
    differ."""
    told = {"data", "base", "versions"}  # the files themselves are compared
    if now.base and _without_size(before.arch) == _without_size(now.arch):
        told.add("arch")  # the base decides the size, whether the name says it or not
    found = {
        field.name: (getattr(before, field.name), getattr(now, field.name))
        for field in fields(Plan)
        if field.name not in told and getattr(before, field.name) != getattr(now, field.name)
    }
    if "flags" in found:
        old, new = found["flags"]
        found["flags"] = (
            " ".join(flag for flag in old if flag not in new) or "none",
            " ".join(flag for flag in new if flag not in old) or "none",
        )
    return found


def _without_size(arch):
    """roberta_small_lora -> roberta_lora; roberta_small -> roberta_peft, which it is."""
    found = re.sub("^roberta_(small|base|large)", "roberta", arch)
    return "roberta_peft" if found in ("roberta", "roberta_full") else found


def sentence(differ: dict) -> str:
    """``lr 0.001, now 0.002; max_epoch 1, now 4``; files by their names, not by their digests."""
    return "; ".join(
        f"{name.replace('_sha256', '')} has changed"
        if name.endswith("_sha256")
        else f"{name} {old}, now {new}"
        for name, (old, new) in differ.items()
    )


def data_fingerprint(data: Path) -> str:
    """SHA-256 of the dictionaries and rows of a data folder, and of the kind of its rows."""
    digest = hashlib.sha256()
    if not (data / "input0").is_dir():  # prompts and answers, as they are written
        for path in sorted(path for end in pairs.ENDS for path in data.glob(f"*{end}")):
            digest.update(f"{path.name} {_sha256(path)}\n".encode())
    kind = kind_of(data)
    for path in sorted(data.glob("*/*")):
        is_numbers = kind == NUMBER and path.suffix == ".label"
        if path.suffix in (".bin", ".idx") or path.name == "dict.txt" or is_numbers:
            digest.update(f"{path.relative_to(data)} {_sha256(path)}\n".encode())
    if kind != CLASSES:
        digest.update(f"{kind}\n".encode())
    return digest.hexdigest()


def base_fingerprint(base: Path) -> str:
    """SHA-256 of a checkpoint, or of the weights and the config in a folder.

    Raises:
        InputError: there is none.
    """
    if not base.is_dir():
        return _sha256(base)
    digest = hashlib.sha256()
    for path in sorted([*base.glob("*.safetensors"), *base.glob("config.json")]):
        digest.update(f"{path.name} {_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        found = None  # opening it says what is wrong
    return _sha256_of(path, found and (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=1000)
def _sha256_of(path: Path, _state) -> str:
    """Computed once for each state of a file: a sweep has many plans of one base."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        if not path.exists():
            raise InputError(f"The base checkpoint {path} does not exist.") from None
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    return digest.hexdigest()


def _grouped(words):
    """["--dropout", "0.2", "--cpu"] -> ["--cpu", "--dropout 0.2"]."""
    found = []
    for word in words:
        if word.startswith("--") or not found:
            found.append(word)
        else:
            found[-1] += f" {word}"
    return sorted(found)


def versions(*names: str) -> dict:
    """Package -> its version; None where it is not installed."""
    from importlib import metadata

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
