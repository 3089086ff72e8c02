"""Average the last or best checkpoints of one run, and score the average.

    fairseq-peft average runs/mine --best 3 --out runs/mine-best3
    fairseq-peft predict --base model.pt --adapter runs/mine-best3/adapter reviews.txt

The mean is that of the trained parameters, tensor by tensor (of LoRA: of A, and of B). The run has
to have kept the checkpoints: --keep-best-checkpoints 3, or --keep-last-epochs 3. OUT gets adapter/,
and, where the run has a result.json, one of its own: a row of its own in the report, called after
the method with -best3 behind. The run stays as it is. Whether the average is better, valid says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fairseq_peft.errors import InputError


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the folder of a run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=int, metavar="K", help="the last K validations")
    which.add_argument("--best", type=int, metavar="K", help="the best K, by what chose in the run")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--data", metavar="DIR", help="the run's data folder, if it has moved")
    parser.add_argument("--base", metavar="BASE", help="the run's base, if it has moved")
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")


def run(args) -> int:
    if os.path.lexists(args.out) and not args.force:
        raise InputError(f"{args.out} exists. Give another folder, or --force to write over it.")
    if args.out.resolve() in (args.run_dir.resolve(), *args.run_dir.resolve().parents):
        raise InputError(
            f"--out {args.out} holds the run itself, which stays as it is. Give another folder."
        )

    import logging
    import warnings

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.combining.average import average

    for name in ("fairseq.data.data_utils", "fairseq.tasks", "fairseq_peft"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Scoring takes as long as a validation.
    logging.getLogger("fairseq_peft.combining").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message="'pin_memory'")  # fairseq always asks for it
    which, number = ("last", args.last) if args.last is not None else ("best", args.best)
    made = average(args.run_dir, which, number, args.out / "adapter", args.data, args.base)
    in_report = (args.run_dir / "result.json").exists()
    if in_report:
        write_result(args.run_dir, args.out, f"{which}{number}", made)
    chosen = made.choice.best_of([one.line for one in made.kept])
    places = ", ".join(str(one.line["num_updates"]) for one in made.kept)
    metric = made.choice.metric
    lines = [f"{args.out}: the mean of {number} checkpoints, after {places} updates"]
    for split, found in made.subsets.items():
        single = chosen["subsets"].get(split)  # none with --eval-test best
        alone = f"; the best of them alone {single[metric]:.4f}" if single else ""
        lines.append(f"  {metric} on {split}: {found[metric]:.4f}{alone}")
    if not in_report:
        lines.append(f"  not in the report: {args.run_dir} has no result.json")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def write_result(run_dir: Path, out: Path, name: str, made) -> None:
    """result.json and predictions.npz of the average: those of the run, but for what was scored
    anew, and without its curve. The costs are the run's."""
    from fairseq_peft.report.result import write_result
    from fairseq_peft.report.runs import OF_NO_VALIDATION, read_result
    from fairseq_peft.runs import predictions

    result = read_result(run_dir / "result.json")
    valid, test = made.subsets[made.choice.subset], made.subsets.get("test", {})
    last = made.kept[-1].line
    scored = [key for key in result if key.startswith("test_")]
    result.update(
        method=f"{result['method']}-{name}",
        averaged=[one.line["num_updates"] for one in made.kept],
        **OF_NO_VALIDATION,
        best_epoch=last["epoch"],
        best_update=last["num_updates"],
        best_value=made.choice.value(made.subsets),
        valid_accuracy=valid.get("accuracy"),
        **{key: test.get(key[len("test_") :]) for key in scored},
    )
    if made.predictions.predicted:
        predictions.write(out / predictions.NAME, made.predictions)
    write_result(out, result)
