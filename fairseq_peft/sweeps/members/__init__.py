"""The runs of a sweep as members of one process, on one frozen base.

``runs.py``: command lines, checks, logs. ``group.py``: who has the turn (``turns.py``), and what is
computed when all wait. ``task.py``: where a run asks for scores. ``waves.py``: who computes
together. ``passes.py``: the passes, and whose an error is. ``joint.py``: many models as one.
"""
