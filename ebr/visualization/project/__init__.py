"""Vectors → points, and how far they can be trusted."""
