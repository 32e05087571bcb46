"""Other toolkits' checkpoints: their names, what they imply, what matches."""
