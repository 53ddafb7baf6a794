"""Text encoders of Hugging Face folders, and expressions embedded ahead of time."""
