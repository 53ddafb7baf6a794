"""Plans of TensorRT and TensorRT-RTX: which fit this machine, and how they run."""
