"""Benchmark of search over many frames, `sightline bench search`."""
