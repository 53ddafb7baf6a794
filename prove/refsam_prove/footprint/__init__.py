"""Size of an installation, and time from start to the first mask."""
