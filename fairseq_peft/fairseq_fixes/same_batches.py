"""A run that goes on, or validates what it trains on, has the batches that it would have had.

fairseq makes the batches of a task once and shuffles them anew in each epoch. Which rows stand
together, and in which order, is drawn with the number of the epoch in which it makes them: the
first, or, where a run goes on, a later one. So it went on with other batches, in another order of
their rows, and other dropout.

And it has one iterator for a data set: with ``--valid-subset valid,train`` a validation took that
of training, and each cost the run an epoch.
"""

from __future__ import annotations

import functools

from fairseq.tasks import FairseqTask

from fairseq_peft.fairseq_fixes import last_batch


def install() -> None:
    """Let batches that are made once be made as in the first epoch, training's for itself; once."""
    if not hasattr(FairseqTask.get_batch_iterator, "__wrapped__"):
        FairseqTask.get_batch_iterator = _get_batch_iterator(FairseqTask.get_batch_iterator)


def _get_batch_iterator(original):
    @functools.wraps(original)
    def get_batch_iterator(self, dataset, *args, epoch=1, **kwargs):
        if last_batch.trains():
            self.trained_on = dataset
        elif dataset is getattr(self, "trained_on", None):
            kwargs["disable_iterator_cache"] = True
        anew = any(map(kwargs.get, ("update_epoch_batch_itr", "disable_iterator_cache")))
        anew = anew or getattr(self.cfg, "rebuild_batches", False)
        if anew or dataset in self.dataset_to_epoch_iter or not self.can_reuse_epoch_itr(dataset):
            found = original(self, dataset, *args, epoch=epoch, **kwargs)
            if kwargs.get("disable_iterator_cache"):
                found.persistent_workers = False  # as in data/epochs.py
            return found
        found = original(self, dataset, *args, epoch=1, **kwargs)
        found.epoch = max(epoch, 1)
        dataset.set_epoch(epoch)
        return found

    return get_batch_iterator
