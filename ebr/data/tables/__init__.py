"""Tables: delimited text, Parquet, ORC and Arrow; their columns, cells and shards."""
