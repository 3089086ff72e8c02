"""Runs of an experiment: each a fork of this process, a few at once; what is done stays done.

A run leaves in its folder a log, and result.json once it has ended well: what it found, with its
seconds of CPU time and its peak of memory. The process imports fairseq once for all of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FAIRSEQ_PEFT_SHARED", ROOT.parent / "shared"))
sys.path[:0] = [str(ROOT)]

from fairseq_peft.errors import InputError, install_excepthook, sentence  # noqa: E402,F401
from fairseq_peft.report.stats import mean, sample_sd  # noqa: E402
from fairseq_peft.runs.log import write_json  # noqa: E402

RESULT = "result.json"
#: What the data and the runs of a folder were made with; there once the data is.
SETTING = "setting.json"


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        folder: where its files land.
        commands: what --dry-run shows.
        call: what a fork does; returns what it found.
        threads: of the fork.
    """

    folder: Path
    commands: list
    call: Callable[[], dict]
    threads: int = 1


def start(program: str) -> None:
    """Errors are one line; of logs only those of the runs, in their files."""
    install_excepthook(program)
    logging.disable(logging.INFO)


def run_all(runs: list[Run], at_once: int, dry_run: bool = False) -> None:
    """Make every run that has no result yet, ``at_once`` at a time, in their order.

    Raises:
        InputError: some failed; all others are done.
    """
    if dry_run:
        for run in runs:
            for command in run.commands:
                print(shlex.join(map(str, command)))
        return
    waiting = [run for run in runs if not (run.folder / RESULT).is_file()]
    running, failed = {}, []
    while waiting or running:
        while waiting and len(running) < at_once:
            run = waiting.pop(0)
            running[_fork(run)] = run, time.monotonic()
        number, status, usage = os.wait4(-1, 0)
        if number not in running:
            continue
        run, began = running.pop(number)
        seconds = time.monotonic() - began
        if status:
            failed.append(run.folder)
        else:
            found = json.loads((run.folder / "found.json").read_text(encoding="utf-8"))
            found.update(
                seconds=seconds,
                cpu_seconds=usage.ru_utime + usage.ru_stime,
                peak_memory_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            )
            write_json(run.folder / RESULT, found)
        name = "/".join(run.folder.parts[-2:])
        print(f"{name:<40} {'failed' if status else 'done'} {seconds:6.0f} s", flush=True)
    if failed:
        lines = (failed[0] / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        raise InputError(
            f"{len(failed)} of {len(runs)} runs failed, the first {failed[0]}: "
            f"{lines[-1] if lines else 'no output'} (log: {failed[0] / 'log'})"
        )


def _fork(run: Run) -> int:
    """The id of a child that does ``run`` and ends."""
    run.folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(run.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        logging.disable(logging.NOTSET)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(run.threads)
        write_json(run.folder / "found.json", run.call())
        status = 0
    except BaseException as error:
        print(sentence(error) or traceback.format_exc(), file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def claim(out: Path, setting, args) -> None:
    """Note in ``out`` what its runs are made with.

    Raises:
        InputError: it has runs that were made with something else.
    """
    asked = {**asdict(setting), "data": args.data, "model": args.model, "flags": args.extra}
    asked = json.loads(json.dumps(asked, default=str))
    path = out / SETTING
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        differ = [name for name in asked if asked[name] != there.get(name)]
        if differ:
            raise InputError(
                f"{out} has runs of another setting ({', '.join(differ)}): give another OUT, or "
                "delete it."
            )
    write_json(path, asked)


# ---- The command ---------------------------------------------------------------------------------


def parser(text: str, family: str, model: str, data: str, out: str) -> argparse.ArgumentParser:
    """The flags of every experiment.

    Args:
        text: what it is about; its first paragraph is shown.
        family, model: T5, T5-small.
        data: what --data is.
        out: name of its folder in runs/.
    """
    made = argparse.ArgumentParser(description=text.split("\n\n")[0], allow_abbrev=False)
    made.add_argument("--tiny", action="store_true", help=f"a tiny {family}, pre-trained here")
    made.add_argument("--model", type=Path, help=f"folder of {model}, without --tiny")
    made.add_argument("--data", type=Path, help=data)
    made.add_argument("--out", type=Path, default=ROOT / "runs" / out)
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    made.add_argument("--epochs", type=int, help="passes over train (those of the setting)")
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    made.add_argument("--dry-run", action="store_true", help="show the commands")
    made.add_argument("extra", nargs="*", help="flags of fairseq-train, for our rows, after --")
    return made


def parse(flags: argparse.ArgumentParser, argv, real, made: dict):
    """The arguments, with ``base``, the folder of the model, ``made``, whether it is made here, and
    ``setting``.

    Args:
        real: the setting of real weights.
        made: ``tiny`` (and ``small``), a flag each -> its setting.

    Raises:
        InputError: there is no model, or there are two.
    """
    args = flags.parse_args(argv)
    chosen = [name for name in made if getattr(args, name)]
    if len(chosen) + bool(args.model) != 1:
        names = " or ".join(f"--{name}" for name in [*made, "model"])
        raise InputError(f"Give {names}, the last with the folder of the weights.")
    args.out = args.out.resolve()
    args.made = bool(chosen)
    args.base = args.out / "base" if chosen else args.model.resolve()
    setting = made[chosen[0]] if chosen else real
    args.setting = replace(setting, epochs=args.epochs or setting.epochs)
    return args


# ---- fairseq -------------------------------------------------------------------------------------


def fairseq(program: str, words: list) -> None:
    """``fairseq-train WORDS`` or ``fairseq-validate WORDS``, in this process."""
    from fairseq_cli import train, validate

    import fairseq_peft.plugin  # noqa: F401

    # As in a process of its own, whatever the parent has done with its log.
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        level="INFO",
        stream=sys.stdout,
        force=True,
    )
    sys.argv = [f"fairseq-{program}", *map(str, words)]
    {"train": train, "validate": validate}[program].cli_main()


def training(folder: Path, data: Path, task: list, flags: list, tests: dict, **more) -> Run:
    """A run of ``fairseq-train``, and tests of what was the best on valid.

    Args:
        task: the flags that are for tests, too.
        flags: all others.
        tests: name in result.json -> folder of the data whose split ``test`` is meant, and flags.
        more: what result.json says of the run beside what was measured.
    """
    plugin = ["--user-dir", ROOT / "fairseq_peft"]
    task = [*plugin, *task, "--log-format", "json", "--num-workers", 0]
    train = [data, *task, *flags, "--save-dir", folder, "--no-epoch-checkpoints"]
    best = folder / "checkpoint_best.pt"
    checks = {
        name: [place, *task, *own, "--path", best, "--valid-subset", "test"]
        for name, (place, own) in tests.items()
    }

    def call():
        started = time.process_time()
        fairseq("train", train)
        found = {**more, "train_cpu_seconds": time.process_time() - started}
        for name, words in checks.items():
            fairseq("validate", words)
            sys.stdout.flush()
            found[name] = logged(folder / "log", "test")[-1]
        text = (folder / "log").read_text(encoding="utf-8")
        counts = re.search(r"model params: ([\d,]+) \(num. trained: ([\d,]+)\)", text).groups()
        total, trainable = (int(count.replace(",", "")) for count in counts)
        (folder / "checkpoint_last.pt").unlink(missing_ok=True)
        found.update(total_parameters=total, trainable_parameters=trainable)
        return {**found, **{tag: logged(folder / "log", tag) for tag in ("train", "valid")}}

    shown = [
        ["fairseq-train", *train],
        *(["fairseq-validate", *words] for words in checks.values()),
    ]
    return Run(folder, shown, call)


def logged(log: Path, tag: str) -> list[dict]:
    """The numbers of each line of a fairseq log with this tag: train_inner, train, valid, test."""
    lines = re.findall(rf"\| {tag} \| (\{{.*\}})$", log.read_text(encoding="utf-8"), re.MULTILINE)
    found = []
    for line in lines:
        numbers = {}
        for name, value in json.loads(line).items():
            name = name[len(tag) + 1 :] if name.startswith(f"{tag}_") else name
            numbers[name] = float(value) if isinstance(value, (str, int, float)) else value
        found.append(numbers)
    return found


# ---- The base that an experiment makes -----------------------------------------------------------


def prepare(args, write_data: Callable[[], None], model: str) -> None:
    """The data, once, what the runs are made with, and what all forks need.

    Args:
        write_data: writes them into ``args.out``.
        model: the class of transformers.
    """
    if args.dry_run:
        return
    if not (args.out / SETTING).is_file():
        write_data()
    claim(args.out, args.setting, args)
    import_all(model)


def make_base(args, task: list, config: dict, batch_size: int, precision: str = "fp32") -> None:
    """``args.base``, where no weights were given: pre-trained on ``args.out``/pretraining-data."""
    if args.made:
        data, updates = args.out / "pretraining-data", args.setting.pretraining
        how = {"batch_size": batch_size, "threads": args.jobs, "precision": precision}
        make = pretraining(args.base, data, task, config, updates, 3e-3, **how)
        run_all([make], 1, args.dry_run)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def import_all(model: str) -> None:
    """What all forks need, once; ``model`` is the class of transformers."""
    for name in (
        *("fairseq_cli.train", "fairseq_cli.validate", "fairseq_peft.plugin"),
        *("torch.utils.tensorboard", "rouge_score.rouge_scorer"),
    ):
        importlib.import_module(name)
    from fairseq_peft.models import hf_base

    getattr(hf_base.library(), model)


def train_tokenizer(texts, folder: Path, size: int, special: list[str], lowercase=False) -> None:
    """``folder``/tokenizer.json: byte pairs, the special tokens first, by their order."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def pretraining(folder: Path, data: Path, task: list, config: dict, updates: int, lr: float, **how):
    """A run that makes ``folder``, a model as Hugging Face writes it, by ``fairseq-train`` from
    random weights on ``data``; ``folder`` has the tokenizer already.

    Args:
        how: ``batch_size``, ``threads`` and ``precision``.
    """
    log = folder.parent / "pretraining"
    words = [
        *(data, "--user-dir", ROOT / "fairseq_peft", *task, "--hf-config", folder / "config.json"),
        *("--hf-tokenizer", folder, "--peft", "full", "--precision", how["precision"]),
        *("--optimizer", "peft_adamw", "--lr", lr, "--clip-norm", 1.0, "--max-update", updates),
        *("--lr-scheduler", "polynomial_decay", "--warmup-updates", updates // 10),
        *("--total-num-update", updates, "--batch-size", how["batch_size"]),
        *("--disable-validation", "--no-epoch-checkpoints", "--save-dir", log, "--num-workers", 0),
        *("--save-interval-updates", 250, "--keep-interval-updates", 1),
        *("--log-format", "json", "--log-interval", 20),
    ]

    def call():
        from fairseq import checkpoint_utils

        write_json(folder / "config.json", config)
        fairseq("train", words)
        last = log / "checkpoint_last.pt"
        ((model,), _, _) = checkpoint_utils.load_model_ensemble_and_task([str(last)])
        save_hf(model, folder)
        for path in log.glob("checkpoint*.pt"):
            path.unlink()
        return {"losses": [line["loss"] for line in logged(log / "log", "train_inner")]}

    return Run(log, [["fairseq-train", *words]], call, how["threads"])


def save_hf(model, folder: Path) -> None:
    """config.json and model.safetensors in ``folder``, as transformers has them: our layers of
    GPT-2 keep their weights the other way round."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    stock = getattr(transformers, model.auto).from_config(config)
    state = {name[len("hf.") :]: tensor for name, tensor in model.state_dict().items()}
    stock.load_state_dict(state)
    stock.save_pretrained(folder)


# ---- Tables --------------------------------------------------------------------------------------


def mean_sd(values: list[float], digits: int, scale: float = 1) -> str:
    """``mean ± sd`` over the seeds, or the value of one."""
    if not values:
        return "-"
    sd = sample_sd(values)
    text = f"{scale * mean(values):,.{digits}f}"
    return text if sd is None else f"{text} ± {scale * sd:.{digits}f}"


def results_of(out: Path, name: str) -> list[dict]:
    """What the runs of a row found, in the order of their seeds."""
    paths = (out / "runs" / name).glob("seed*/result.json")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(found, key=lambda one: one["seed"])


def write_table(out: Path, header: list[str], lines: list[list[str]], note: str, results) -> None:
    """table.md and table.json in ``out``; the first is printed, too."""
    drawn = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in drawn)
    text = f"{text}\n\n{note}\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    write_json(out / "table.json", results)
    print(f"\n{text}")
