"""Examples → a better model."""
