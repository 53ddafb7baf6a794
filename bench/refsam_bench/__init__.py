"""Data sets, metrics, timing, parity and reports."""
