"""Where a bundle and the PyTorch reference part: frame, graph and tensor."""
