"""A split decoded once into memory-mapped files: reading them, and making them."""
