"""What `segkit doctor` looks at: packages, machine, GPU and data. Nothing here may fail because something is broken."""
