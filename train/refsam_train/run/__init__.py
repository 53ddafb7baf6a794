"""A training run: start, loop, checkpoints, publication."""
