"""Drawn street scenes with exact labels: canvas, things, scenes."""
