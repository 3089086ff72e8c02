"""What several methods compute with: low-rank updates, budgets of ranks, bottlenecks, MLPs."""
