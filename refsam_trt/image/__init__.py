"""Pixels to tensors and logits to masks."""
