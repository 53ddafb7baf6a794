"""The annotated sets that accuracy is measured on, and what a measurement gives."""
