"""What a run writes down about itself while it trains: run.json, metrics.jsonl, TensorBoard."""
