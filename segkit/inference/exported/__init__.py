"""Files that `segkit export` wrote for other runtimes, behind the same interface as networks of PyTorch."""
