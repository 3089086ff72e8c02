"""Sums of adapters: the updates of folders added, negated, trimmed, and written as one folder."""
