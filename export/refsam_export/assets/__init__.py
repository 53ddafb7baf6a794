"""Data files of the exporter."""
