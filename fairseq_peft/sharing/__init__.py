"""Several adapters, or runs that train, on one frozen base in one pass: which rows of a batch are
whose, where their modules differ, and the switches that stand there."""
