"""What a run writes down about itself: run.json, metrics.jsonl, predictions, TensorBoard."""
