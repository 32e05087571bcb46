"""Images larger than memory; this package need not be read to understand the engine.

Its entry points are `budget.Budget`, limits that keep a call of the engine within a number of bytes, and
`geotiff.open_large`, which opens a file to be labelled without reading it as a whole.
"""
