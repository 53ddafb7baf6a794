"""onnx_file."""
