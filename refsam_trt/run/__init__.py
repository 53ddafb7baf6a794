"""`refsam-run`: jobs, outputs, data sets."""
