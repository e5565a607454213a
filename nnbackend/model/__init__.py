"""Models: a stack of layers with a loss and an optimizer, and their files."""
