"""Plans from graphs: TensorRT and TensorRT-RTX."""
