"""Files of vectors, and exact search among them."""
