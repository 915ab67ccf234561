"""The sample corpus: the documentation of the installed libraries."""
