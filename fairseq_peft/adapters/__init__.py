"""The adapter folder, what a task adds to its base: written, sealed, read, held against a base."""
