"""An example to copy, for people who keep their own ``--user-dir``.

``fairseq-train --user-dir user_dir`` imports this folder; the line below brings in every model,
task, criterion and optimizer of fairseq_peft. Put your own beside it, as fairseq's documentation
says (``user_dir/models/*.py``, ``user_dir/tasks/*.py``).
"""

import fairseq_peft  # noqa: F401
