"""`segkit benchmark`, with `benchmark score` and `benchmark compare`."""
