"""Accuracy against annotations: J and F, the DAVIS protocols, Ref-DAVIS17."""
