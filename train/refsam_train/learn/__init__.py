"""What is learnt and how: forward pass, losses, optimiser."""
