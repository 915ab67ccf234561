"""Tuning by itself: recipes are tried on a ladder, the best is kept, and what it is worth is proved on records apart."""
