"""Data: data sets, readers of several file formats, and batches from arrays."""
