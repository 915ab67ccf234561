"""The check before training."""
