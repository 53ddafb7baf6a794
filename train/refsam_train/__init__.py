"""Parameter-efficient training of RefSAM."""
