"""Data sets, transforms and loaders: from files to uint8 batches."""
