"""`refsam-doctor`: which backends work on this machine, which do not, and why."""
