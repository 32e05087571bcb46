"""`segkit weights inspect | convert | recalibrate`."""
