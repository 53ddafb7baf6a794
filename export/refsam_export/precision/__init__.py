"""Which tensors of a graph are fp32, fp16 or bf16, and what they hold."""
