"""Data sets and batches for fairseq tasks."""
