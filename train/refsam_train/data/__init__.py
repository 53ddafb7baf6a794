"""Clips and batches to learn from."""
