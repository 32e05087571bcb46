"""One file a data set: its label table, where its files lie, and its data module."""
