"""ONNX files from traced PyTorch programs."""
