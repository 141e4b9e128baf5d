"""Delta tables: one table with exactly-once appends, and the filters by which rows are read."""
