"""Callbacks by which a training survives signals, crashes, lost processes, non-finite numbers and lack of memory."""
