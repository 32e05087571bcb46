"""Class names, palettes and label tables; numpy and the standard library only."""
