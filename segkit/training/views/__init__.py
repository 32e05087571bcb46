"""Callbacks that show a training: progress, speed, curves, images, a summary."""
