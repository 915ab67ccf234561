"""Records of texts: JSON and its lines, and tables that hold the same."""
