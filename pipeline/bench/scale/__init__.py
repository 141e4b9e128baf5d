"""Benchmarks of large stores: stores of any size are made quickly, and operations on them are counted and timed."""
