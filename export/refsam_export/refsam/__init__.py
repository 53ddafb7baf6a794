"""refsam."""
