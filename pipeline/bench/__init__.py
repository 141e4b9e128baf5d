"""Benchmarks: `sightline bench …`."""
