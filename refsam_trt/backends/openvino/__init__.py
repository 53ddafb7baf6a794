"""OpenVINO: CPUs, and by name Intel's GPUs and NPUs."""
