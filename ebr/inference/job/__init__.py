"""One run: its parts, its ledger, its output; resumed, and without the same text twice."""
