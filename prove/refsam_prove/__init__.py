"""refsam_prove."""
