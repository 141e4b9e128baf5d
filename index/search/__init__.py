"""Search by vector: FAISS shards of finished days, Parquet for the rest, and the moments that hits are merged into."""
