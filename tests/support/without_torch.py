"""A plugin of pytest for an environment without torch: what needs it is skipped, and says so.

``python -m pytest -p without_torch``, with this folder in PYTHONPATH; scripts/test_matrix.sh does.
"""

from __future__ import annotations

import re

import pytest

NEEDS = re.compile(
    r"No module named '(torch|fairseq|fairseq_cli|omegaconf|hydra)[.']|(fairseq) is not installed"
)


def skipped(report, path):
    """A report of a failure that is an import of torch becomes that of a skip.

    What a command printed counts, too: in a process of its own, or before an assertion.
    """
    if report.outcome == "failed":
        printed = [text for _, text in getattr(report, "sections", ())]
        found = NEEDS.search("\n".join([str(report.longrepr), *printed]))
        if found:
            report.outcome = "skipped"
            report.longrepr = (str(path), 0, f"Skipped: needs {found[1] or found[2]}")
    return report


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    outcome.force_result(skipped(outcome.get_result(), collector.path))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    outcome.force_result(skipped(outcome.get_result(), item.path))
