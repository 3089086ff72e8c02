"""``python -m fairseq_peft.train FLAGS``: ``fairseq-train --user-dir fairseq_peft FLAGS``, sooner.

The plugin is imported before fairseq, which then imports less (``fairseq_fixes/imports_later.py``).
"""

import os
import sys
from pathlib import Path

from fairseq_peft.fairseq_fixes.imports_later import without_collector


def main() -> None:
    """Train as ``fairseq-train`` does, by ``sys.argv``."""
    with without_collector():
        from fairseq_cli import train  # first: it sets up the log as fairseq-train has it

    own = os.path.abspath(Path(__file__).parent)
    if not any(word.split("=")[0] == "--user-dir" for word in sys.argv[1:]):
        sys.argv[1:1] = ["--user-dir", own]
    train.utils.import_user_module.memo = {own}  # registered already, which fairseq would log
    train.cli_main()


if __name__ == "__main__":
    main()
