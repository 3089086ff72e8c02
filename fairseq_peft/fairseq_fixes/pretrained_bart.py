"""``--task translation_from_pretrained_bart``, with which mBART is fine-tuned.

Its code reads ``self.args``, and the class that it is built on now keeps the flags as ``self.cfg``:
without this, it ends at its first data set with an AttributeError.
"""

from __future__ import annotations

from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask


def install() -> None:
    """Let the task have its flags under the old name; once."""
    if not hasattr(TranslationFromPretrainedBARTTask, "args"):
        TranslationFromPretrainedBARTTask.args = property(lambda task: task.cfg)
