"""The engine, its sessions and their saved state."""
