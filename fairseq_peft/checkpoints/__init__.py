"""Checkpoint files (.pt): opened safely, written whole, slim where a base has the rest, rebuilt."""
