"""Measuring models on evaluation sets."""
