"""Training: the loop over epochs, what looks on, and the way back when it fails."""
