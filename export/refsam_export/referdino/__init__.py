"""ReferDINO: its checkpoints, and the PyTorch reference."""
