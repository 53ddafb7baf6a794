"""Schemes, layers and graphs in eight bits."""
