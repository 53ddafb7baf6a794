"""The PyTorch reference of ReferDINO, on the keys of the official checkpoints."""
