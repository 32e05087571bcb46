"""`segkit report`."""
