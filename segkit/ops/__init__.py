"""Fused tensor operations: floor 0, importing nothing of segkit but its errors."""
