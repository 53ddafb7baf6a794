"""Where graphs run: the protocols, their implementations, and how one is chosen."""
