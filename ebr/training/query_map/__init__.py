"""A linear map of queries, learned on vectors that are computed once."""
