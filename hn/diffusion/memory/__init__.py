"""What a training step keeps in memory: less of it, how much it is, and what fits in a budget."""
