"""Where the files of each data set are and what its labels mean: plain Python, without torch."""
