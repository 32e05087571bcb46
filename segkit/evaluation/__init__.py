"""From labels to numbers: the confusion matrix, the scores derived from it, result files."""
