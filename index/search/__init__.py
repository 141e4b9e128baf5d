"""Search by vector: sealed FAISS shards and the flat tail."""
