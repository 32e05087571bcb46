"""Samples of a data set on one sheet, as an image or as an HTML page."""
