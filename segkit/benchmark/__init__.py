"""Several models under several protocols in one table, with what they cost and what was published."""
