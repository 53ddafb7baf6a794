"""An hour of hostile input for every reader of files."""
