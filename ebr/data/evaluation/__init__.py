"""Evaluation sets: documents, queries, judgements, runs; and what training knows of them."""
