"""Images beyond memory: a guest of the engine, which need not be read to understand it.

Its doors are `budget.Budget`, limits that keep a call of the engine within a number of bytes, and
`geotiff.open_large`, a file that is labelled without being read as a whole.
"""
