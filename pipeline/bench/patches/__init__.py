"""Benchmarks of patch encodings: bytes, exactness, loading speed."""
