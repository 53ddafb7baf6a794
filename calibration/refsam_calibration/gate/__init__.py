"""What quantised layers cost in J&F, and which of them a budget allows."""
