"""Data: data sets, files of many formats, and the way from arrays to batches."""
