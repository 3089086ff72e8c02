"""Registers everything with fairseq. Imported by the package when fairseq is there."""

import os
import sys
import types
import warnings

import numpy as np

from fairseq_peft.errors import install_excepthook
from fairseq_peft.fairseq_fixes.compat import require_fairseq
from fairseq_peft.fairseq_fixes.memory import keep_freed

require_fairseq()
keep_freed()

# What fairseq's own use of hydra and torch sets off in every command, and no user can change: in
# it, the one line that says what is wrong would be lost.
for _message in (
    r"hydra\.experimental\.",
    r"\s*The version_base parameter",
    r"In 'config': Usage of deprecated",
    r"\s*'config' is validated against",
    r"\s*The strict flag in the compose",
    r"'pin_memory' argument is set",
    r"`torch\.cuda\.amp\.",
):
    warnings.filterwarnings("ignore", message=_message)

# fairseq looks for `--user-dir fairseq_peft` at <site-packages>/fairseq/../fairseq_peft as well,
# and compares that string with the package's path: the same folder under that spelling is not
# another package.
_package = sys.modules["fairseq_peft"]
_alias = os.path.join(os.path.dirname(sys.modules["fairseq"].__file__), "..", "fairseq_peft")
if os.path.realpath(_alias) == os.path.realpath(os.path.dirname(__file__)):
    _package.__path__.append(_alias)

# fairseq's masked_lm with --sample-break-mode eos asks for np.compat.long, which numpy 2 dropped.
if not hasattr(np, "compat"):
    np.compat = types.SimpleNamespace(long=int)

from fairseq_peft import criterions, models, optim, tasks  # noqa: E402, F401
from fairseq_peft.checkpoints import saving  # noqa: E402, F401
from fairseq_peft.criterions import words  # noqa: E402
from fairseq_peft.fairseq_fixes import (  # noqa: E402
    last_batch,
    long_rows,
    ngrams,
    plateau,
    pretrained_bart,
    processes,
    same_batches,
    whole_words,
)
from fairseq_peft.fairseq_fixes.help import complete_help  # noqa: E402
from fairseq_peft.tasks import stock  # noqa: E402

install_excepthook()
complete_help()
saving.install()
stock.install()
whole_words.install()
last_batch.install()
long_rows.install()
ngrams.install()
plateau.install()
pretrained_bart.install()
processes.install()
same_batches.install()
words.install()
