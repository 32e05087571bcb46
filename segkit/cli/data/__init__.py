"""`segkit data`: check, count, cache and look at data sets, before a GPU is touched."""
