"""Studies: variants of a recipe trained with several seeds each, and the table of their scores."""
