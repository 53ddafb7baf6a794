"""What an export will need of a machine, and what the machine has."""
