"""Several members, each with adapters and heads of its own, on one frozen base.

``rows.py``: which rows are whose. ``forward.py``: one pass for all. ``turns.py`` and ``group.py``:
the runs of a sweep as members. A member that only predicts needs the first two.
"""
