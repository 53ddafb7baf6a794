"""The PyTorch reference of RefSAM."""
