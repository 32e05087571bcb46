"""Reads other toolkits' checkpoints: their names, what they imply and what matches."""
