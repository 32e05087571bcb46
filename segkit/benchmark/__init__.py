"""Several models and protocols in one table, with their cost and their published numbers."""
