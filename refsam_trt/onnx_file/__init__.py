"""What an .onnx file says of itself, read without trusting it."""
