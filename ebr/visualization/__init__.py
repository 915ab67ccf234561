"""Vectors → pictures."""
