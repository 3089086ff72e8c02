"""Several members on one frozen base in one pass: whose rows are whose, where modules differ.

A member is an adapter that answers requests (``serving/``) or a run that trains (``sweeps/``).
``rows.py``: the pieces of a batch. ``differences.py``: what a member changed, found by comparison.
``switches.py``: what stands there. ``switched.py``: a model with switches.
"""
