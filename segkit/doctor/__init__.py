"""The checks of `segkit doctor`: packages, machine, GPU and data. None may fail because something is broken."""
