"""Training: the loop over epochs, callbacks, progress, and recovery from failures."""
