"""``--task translation_from_pretrained_bart``, with which mBART is fine-tuned.

Its code reads ``self.args``, and the class that it is built on now keeps the flags as ``self.cfg``:
without this, it ends at its first data set with an AttributeError. And what it generates with knows
beams alone: sampling, diverse beams and prefixes of the target were ignored.
"""

from __future__ import annotations

from fairseq.tasks import FairseqTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask


def install() -> None:
    """Let the task have its flags under the old name, and generate as other tasks do; once."""
    if hasattr(TranslationFromPretrainedBARTTask, "args"):
        return
    TranslationFromPretrainedBARTTask.args = property(lambda task: task.cfg)
    own = TranslationFromPretrainedBARTTask.build_generator
    TranslationFromPretrainedBARTTask.build_generator = _build_generator(own)


def _build_generator(own):
    def build_generator(self, models, args, extra_gen_cls_kwargs=None, **more):
        if getattr(args, "score_reference", False):
            return own(self, models, args)
        # What ends a text, and starts it, is its language.
        eos = {"eos": self.tgt_dict.index(f"[{self.args.target_lang}]")}
        extra = {**eos, **(extra_gen_cls_kwargs or {})}
        return FairseqTask.build_generator(self, models, args, extra_gen_cls_kwargs=extra, **more)

    return build_generator
