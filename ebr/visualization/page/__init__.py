"""A map as an interactive page."""
