"""Folders of label PNGs: pairing, reading, scoring, official Cityscapes scores, submissions."""
