"""The CUDA driver, device memory, and ONNX Runtime on a GPU."""
