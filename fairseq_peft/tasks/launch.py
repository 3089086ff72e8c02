"""What happens once, before the first update: a run's model is built, and all it needs checked.

``launch`` is the whole of it, step by step; what is refused is refused here, in seconds, and not in
the middle of the run.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.models import ARCH_MODEL_REGISTRY

from fairseq_peft import compiling, scores
from fairseq_peft.checkpoints import last_test, slim
from fairseq_peft.data import checks, targets
from fairseq_peft.errors import InputError
from fairseq_peft.injection import counting
from fairseq_peft.models import sizes
from fairseq_peft.models.kept_features import KeptFeatures
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.optim.peft_adamw import check_learning_rates
from fairseq_peft.runs import choice as choices
from fairseq_peft.runs import lock, plan
from fairseq_peft.runs import log as run_log
from fairseq_peft.tasks import best_adapter, record
from fairseq_peft.tasks.running import Run

logger = logging.getLogger(__name__)


def launch(task, cfg):
    """The model that a run trains, and the run.

    fairseq itself loads the base or the checkpoint into the model, once this has returned. It is
    read here as well, because later is too late: its classes decide how many outputs the head has,
    and a file that does not fit is to be refused before the data is read.

    Args:
        task: a ``SentenceClassificationTask`` whose model has not been built. (``tasks/answers.py``
            launches its runs itself.)
        cfg: the model's config.

    Returns:
        (model, ``Run``).

    Raises:
        InputError: whatever the run would fail at, or ignore.
    """
    model, start, state, choice = prepare(task, cfg)
    compiling.check_device(compiling.of(model.args), torch.cuda.is_available() and not task.cfg.cpu)

    # Every row of every split; they are cut to the room that the model leaves.
    load_data(task)

    # From here on the folder is this process's.
    take_folder(task, start)

    sizes = {
        "limit_bytes": task.cfg.keep_features * 10**6,
        "disk_bytes": task.cfg.keep_features_on_disk * 10**6,
    }
    model.keep_features(KeptFeatures(**sizes, in_training=True, folder=task.cfg.save_dir))

    # What is written of it. The counts are right from here on: the head is there, the rest frozen.
    for line in counting.describe(model, HEADS, f"--peft {model.setting.name}"):
        logger.info(line)
    described = record.describe_run(
        task.cfg, model, start, task.labels, task.kind, task.datasets, choice
    )
    if start.resumes:
        record.check_same_knobs(task.cfg.save_dir, described)
    run = Run(
        save_dir=task.cfg.save_dir,
        subsets=task.cfg.valid_subset.split(","),
        described=described,
        plan=read_plan(task, start),
        best=best_so_far(choice, task.cfg.save_dir, start, state),
        eval_test=task.cfg.eval_test,
        verify_frozen=task.cfg.verify_frozen,
    )
    if not task.cfg.no_save:
        run.best_adapter = keep_best_adapter(task, model, run, start, state)
    if state and not task.cfg.full_checkpoints:
        run.base_ref = slim.base_ref_of_run(model, model.family, state, start, run.save_dir)
    return model, run


def prepare(task, cfg):
    """The model that a run trains, checked, with nothing written: a sweep asks for it, too, before
    its first run.

    Args and errors: as ``launch``.

    Returns:
        The model; where training starts (``checks.Start``); the checkpoint of that place, None from
        scratch; what chooses the best validation.
    """
    # Where training starts.
    checks.flags(task.cfg)
    start = task.start()
    choice = choose(task.cfg, task.labels, start, task.kind)
    check_validates(task.cfg)
    state = read_start(start)
    if start.resumes:
        best = best_so_far(choice, task.cfg.save_dir, start, state)
        check_goes_on(start.path, state, task.cfg, best)
        adopt_precision(cfg, state)
    if state:  # before the head is made: as many outputs as classes, in the checkpoint's order
        adopt_sizes(cfg, state, start.path)
        adopt_labels(task, start, state, cfg.reset_head)

    # The model, and whether it can start there.
    model = task.build_classifier(cfg)
    model.accepts_base = not start.resumes  # what a run has written itself lacks nothing
    check_learning_rates(model, getattr(task.cfg.optimizer_settings, "_name", None))
    if state:
        checks.check_start(start.path, state, model, task.dictionary, task.cfg)
        if not start.resumes:
            record.check_start_knobs(start.path, state, model)
    model.check_base(state["model"] if state else None)
    if not state:  # else the model does so when fairseq has loaded the base
        model.adopt_base()
    return model, start, state, choice


def load_data(task) -> None:
    """Load every split that a run reads.

    Raises:
        InputError: what ``data.checks.load_split`` says of their rows.
    """
    for split in [task.cfg.train_subset, *task.cfg.valid_subset.split(",")]:
        task.load_dataset(split)


def take_folder(task, start: checks.Start) -> None:
    """Lock the run's folder against other processes, in the first process of this run.

    Raises:
        InputError: another process writes it, or has written it since this one looked.
    """
    if distributed_utils.get_global_rank() != 0:
        return
    save_dir = task.cfg.save_dir
    lock.take(save_dir)
    if task.start() != start:
        raise InputError(
            f"{save_dir} was trained by another process in the meantime. Start again: the run goes "
            "on from there."
        )


def read_plan(task, start: checks.Start) -> plan.Plan | None:
    """The plan of a run that a command line has started; ``fairseq-hydra-train`` has none.

    Raises:
        InputError: the run in the folder would go on as another.
    """
    data, words = task.cfg.data, sys.argv[1:]
    if distributed_utils.get_global_rank() != 0 or data not in words or "--task" not in words:
        return None
    words.remove(data)
    return plan.begin(Path(task.cfg.save_dir), [data, *words], start.resumes)


def plan_updates(cfg, num_batches: int, run: Run | None) -> int:
    """The updates that a run of the task's flags ``cfg`` will make, with so many batches an epoch
    in each process; 0 where its flags do not tell.

    Raises:
        InputError: the run, which has validated nothing yet, would not in so many.
    """
    limits = (cfg.max_epoch, cfg.max_update)
    planned = plan.count_updates(*limits, cfg.update_freq, [num_batches], cfg.skip_remainder_batch)
    if run is not None and run.best.value is None:
        check_validates(cfg, planned)
    return planned


def choose(cfg, labels, start: checks.Start, kind: str) -> choices.Choice:
    """What chooses the best validation of a run.

    Raises:
        InputError: the flags contradict each other, or the run that goes on was chosen by something
            else so far.
    """
    subsets = cfg.valid_subset.split(",")
    choice = choices.choice(
        cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric, subsets, labels, kind
    )
    before = run_log.read_choice(cfg.save_dir) if start.resumes else None
    if before is not None and before != choice.described():
        was = choices.Choice.of_run({"chosen_by": before})
        direction = " --maximize-best-checkpoint-metric" if was.maximize else ""
        raise InputError(
            f"The best of the run in {cfg.save_dir} was the {was} so far, and would be the "
            f"{choice} from here on. Give --best-checkpoint-metric {was.metric}{direction} and "
            f"{was.subset} as the first of --valid-subset, or another --save-dir."
        )
    run_log.check_writable(cfg.save_dir)
    logger.info(f"the best validation is that of the {choice}, the latest on ties")
    return choice


def check_validates(cfg, planned: int = 0) -> None:
    """Raise InputError where no validation would be made, so that nothing would be chosen.

    Args:
        planned: the updates of the run; 0 before its batches are known, or where its flags do not
            tell.
    """
    if cfg.no_save:
        return
    flag = None
    most = planned or cfg.max_update
    if cfg.disable_validation:
        flag = "--disable-validation"
    elif 0 < most < cfg.validate_after_updates:
        flag = f"--validate-after-updates {cfg.validate_after_updates} with {most} updates"
    elif 0 < cfg.max_epoch < cfg.validate_interval and not any(
        0 < updates <= (planned or updates)
        for updates in (cfg.validate_interval_updates, cfg.save_interval_updates, cfg.max_update)
    ):
        flag = f"--validate-interval {cfg.validate_interval} with --max-epoch {cfg.max_epoch}"
    if flag:
        raise InputError(
            f"{flag}: without a validation nothing chooses a checkpoint, and there would be no "
            "adapter folder and no result. Leave it out, or give --no-save if nothing is to be "
            "kept."
        )


def check_goes_on(path: str, state: dict, cfg, best: choices.Best) -> None:
    """Raise InputError where a run would go on in its folder with its updates counted anew: they
    tell its validations apart, and decide its schedule. One that has ended does not go on.

    Args:
        path: of the last checkpoint of the run.
        state: what it holds.
        cfg: the task's flags.
        best: the best validation up to there.
    """
    reason = None
    if cfg.reset_optimizer:
        reason = "with --reset-optimizer"
    elif state.get("last_optimizer_state") is None:
        updates = state["optimizer_history"][-1]["num_updates"]
        if not last_test.ended_by(cfg, state["extra_state"], updates, best.waited):
            reason = "without a state of the optimizer (--no-save-optimizer-state)"
    if reason:
        raise InputError(
            f"{path} cannot go on {reason}: its updates would be counted from 0 again, beside "
            f"those of before. Give --finetune-from-model {path} and another --save-dir, which "
            "starts another run from it."
        )


def best_so_far(choice: choices.Choice, save_dir: str, start: checks.Start, state: dict | None):
    """The best validation of a run up to the checkpoint that it goes on from."""
    if not start.resumes:
        return choices.Best(choice)
    num_updates = state["optimizer_history"][-1]["num_updates"]
    return choices.Best(choice, run_log.read_lines(save_dir, num_updates))


def read_start(start: checks.Start) -> dict | None:
    """The checkpoint that training starts from; None from scratch.

    Where a run goes on, the base that is named on its command line is where to look for what its
    slim checkpoint leaves out.
    """
    if start.path is None:
        return None
    return slim.read(start.path, start.base if start.resumes else None)


def adopt_precision(cfg, state: dict) -> None:
    """Let a run go on in the precision that it began with, whatever ``auto`` means here.

    Args:
        cfg: the model's config.
        state: the last checkpoint of the run.
    """
    if cfg.precision in (None, "auto"):
        began = (state.get("cfg") or {}).get("model") or {}
        cfg.precision = began.get("precision") or cfg.precision


def adopt_sizes(cfg, state: dict, path: str) -> None:
    """Set the flags of the model that its start decides: on a command line they are set already,
    ``fairseq-hydra-train`` has not looked.

    Raises:
        InputError: a flag, or the name of the architecture, says something else.
    """
    name = cfg._name
    table = getattr(ARCH_MODEL_REGISTRY.get(name), "base_sizes", None)
    if table is not None and name in table.named:
        sizes.complete(cfg, table, name, state, path)


def adopt_labels(task, start: checks.Start, state: dict, reset_head: bool) -> None:
    """Where training starts from a head, its classes keep their outputs, by name.

    Raises:
        InputError: the data has other classes, or another dictionary.
    """
    saved = state.get("task_state") or {}
    head = f"{HEADS}{task.cfg.classification_head_name}.out_proj.weight"
    if head not in state["model"] or (reset_head and not start.resumes):
        saved = {key: value for key, value in saved.items() if key != "labels"}
    labels = saved.get("labels")
    if labels is not None:
        targets.check_kind(task.cfg.data, task.kind, saved.get("kind", scores.CLASSES))
    if labels is not None and set(labels) != set(task.labels):
        raise InputError(
            f"The head of {start.path} knows {len(labels)} classes ({', '.join(labels)}), "
            f"{task.cfg.data} has {len(task.labels)} ({', '.join(task.labels)}). Pass "
            "--reset-head to start a fresh head, or give another checkpoint."
        )
    task.load_state_dict(saved)


def keep_best_adapter(task, model, run: Run, start: checks.Start, state: dict | None):
    """What writes SAVE_DIR/adapter at each new best.

    Raises:
        InputError: the folder holds what would be lost.
    """
    described, copies = best_adapter.describe(task.cfg, model, run.described, task)
    base = best_adapter.describe_base(start, state, run.save_dir)
    return best_adapter.BestAdapter(run.save_dir, described, copies, base, run.best, start.resumes)
