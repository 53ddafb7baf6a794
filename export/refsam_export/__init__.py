"""Export: PyTorch reference, checkpoints, ONNX graphs and parity."""
