"""Random weights that behave like trained ones."""
