"""One encoder and what is attached to it."""
