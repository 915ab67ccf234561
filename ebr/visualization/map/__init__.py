"""A map: its rows, its numbers, and the files it becomes."""
