"""Training pairs from a bare corpus, and the command that makes them."""
