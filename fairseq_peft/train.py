"""``python -m fairseq_peft.train FLAGS``: ``fairseq-train --user-dir fairseq_peft FLAGS``, sooner.

The plugin is imported before fairseq, which then imports less (``fairseq_fixes/metrics_later.py``).
"""

import sys
from pathlib import Path


def main() -> None:
    """Train as ``fairseq-train`` does, by ``sys.argv``."""
    from fairseq_cli import train

    if not any(word.split("=")[0] == "--user-dir" for word in sys.argv[1:]):
        sys.argv[1:1] = ["--user-dir", str(Path(__file__).parent)]
    train.cli_main()


if __name__ == "__main__":
    main()
