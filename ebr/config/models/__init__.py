"""Options of the verbs that make one model of another: with more tokens, merged, with its queries adapted."""
