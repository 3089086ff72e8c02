"""``fairseq-train`` with this plugin's methods at stock fairseq's speed: every trick taken out.

``python stock_style.py FLAGS OF fairseq-train``. sweep_speed.py runs it: stock fairseq has no LoRA;
what a sweep would cost with it can only be told from its way to train: batches at random, torch's
dropout, attention and AdamW, every position of the last layer, fp32 (the caller's flag).
"""

from __future__ import annotations

import os
import sys

# Before glibc's memory is touched: the plugin leaves it alone then.
os.environ.setdefault("MALLOC_ARENA_TEST", "8")


def main():
    import numpy as np
    import steps
    from fairseq_cli.train import cli_main

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.tasks import sentence_classification

    def at_random(sizes, max_sentences=None, max_tokens=None, rng=None, sort_by=None):
        rows = np.arange(len(sizes)) if rng is None else rng.permutation(len(sizes))
        return [
            rows[start : start + max_sentences].tolist()
            for start in range(0, len(rows), max_sentences)
        ]

    sentence_classification.bucket_batches = at_random
    with steps.turned_off([*steps.REPLACED]):
        sys.argv[0] = "fairseq-train"
        cli_main()


if __name__ == "__main__":
    main()
