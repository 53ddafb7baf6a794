"""Measures every figure that is stated; stands on top of all packages and is in no wheel."""
