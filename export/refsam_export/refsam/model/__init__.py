"""The PyTorch reference of RefSAM (refsam-model)."""
