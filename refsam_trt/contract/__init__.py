"""What is written down: manifests, and the tensors of every model family."""
