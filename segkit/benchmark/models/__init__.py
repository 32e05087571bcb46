"""Models of any kind as `segkit benchmark` scores them: one file for each kind."""
