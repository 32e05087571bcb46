"""What is wrong with a data set: one pair, all files, and the report."""
