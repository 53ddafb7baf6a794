"""Folders that are sealed by hashes: bundles and plans, read, checked and written."""
