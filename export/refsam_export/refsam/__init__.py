"""The RefSAM family: PyTorch model, checkpoints, graphs."""
