"""Whatever files hold, they are read or refused in a sentence.

A few examples of each reader, the same every time; ``scripts/test.sh fuzz`` looks for new ones.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from readers import READERS, check  # noqa: E402

NUM_EXAMPLES = 25


@pytest.mark.parametrize("name", READERS)
def test_files_are_read_or_refused_in_a_sentence(name):
    reader = READERS[name]
    same = settings(
        max_examples=NUM_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    same(given(reader.files)(lambda files: check(reader, files)))()
