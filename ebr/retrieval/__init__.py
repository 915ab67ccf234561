"""Vectors → answers, and how good they are."""
