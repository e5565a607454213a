"""Whole programs: what one is told, and its steps."""
