"""What all commands share: exit codes, progress, parameter types."""
