"""The large index: shards of compressed vectors by time, searched approximately and re-ranked exactly from Parquet."""
