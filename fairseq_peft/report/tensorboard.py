"""Hyper-parameters and final metrics of a finished run, for TensorBoard's HParams tab.

Written with the tensorboard package itself: its protocol files are all that is needed, and
torch.utils.tensorboard would bring torch in and put each entry into a run folder of its own.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fairseq_peft.files import is_utf8

SUFFIX = ".hparams"
FACTS = ("data", "init", "method", "seed", "arch", "trainable_parameters", "total_parameters")
METRICS = ("valid_accuracy", "test_accuracy", "best_value", "best_epoch", "best_update", "seconds")
logger = logging.getLogger(__name__)


def hyperparameters(result: dict) -> dict:
    """Flat names -> string, number or bool: what the run was given (null entries left out)."""
    flat = {key: result.get(key) for key in FACTS}
    flat.update(result["hyperparameters"])
    flat.update({f"{result['method']}.{k}": v for k, v in result["method_config"].items()})
    return {
        key: value if isinstance(value, (str, bool, int, float)) else str(value)
        for key, value in flat.items()
        if value is not None
    }


def write_hparams(run_dir: Path | str, result: dict) -> Path | None:
    """An event file in ``run_dir`` itself, so that the run keeps its name; replaces an earlier one.

    No Experiment summary is written on purpose: TensorBoard takes the first it finds for all runs
    and would hide the hyper-parameters that this run does not have.

    Returns:
        The file, or None (and a warning) where tensorboard is missing or broken, or does not take
        the path.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
        from tensorboard.plugins.hparams.plugin_data_pb2 import (
            HParamsPluginData,
            SessionEndInfo,
            SessionStartInfo,
        )
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        logger.warning("no HParams for TensorBoard: %s", error)
        return None

    if not is_utf8(run_dir):
        logger.warning("no HParams for TensorBoard: the path of the run is not UTF-8")
        return None

    def marked(tag: str, content: HParamsPluginData) -> Summary:
        # the content is in the metadata; TensorBoard still wants a tensor with it
        about = metadata.create_summary_metadata(content)
        return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])

    now = time.time()
    start = SessionStartInfo(start_time_secs=now - (result["seconds"] or 0))
    for key, value in hyperparameters(result).items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, str):
            start.hparams[key].string_value = value
        else:
            start.hparams[key].number_value = value
    end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=now)
    metrics = {f"final/{key}": result[key] for key in METRICS if result.get(key) is not None}

    run_dir = Path(run_dir)
    for old in run_dir.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    writer = EventFileWriter(str(run_dir), filename_suffix=SUFFIX)
    for summary in (
        marked(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in metrics.items()]),
        marked(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
    ):
        writer.add_event(Event(wall_time=now, step=result.get("best_update") or 0, summary=summary))
    writer.close()
    return max(run_dir.glob(f"events.out.tfevents.*{SUFFIX}"))
