"""Figures of int8 and fp8."""
