"""Formulas: one file for each kind of operation."""
