"""Proof that graphs equal the PyTorch reference.

`reference` writes what PyTorch computes to disk; `compare` runs a bundle on the same inputs,
without PyTorch and in a process of its own, and states the differences. Relative error, everywhere:
largest absolute difference over the largest absolute reference value of that tensor.
"""
