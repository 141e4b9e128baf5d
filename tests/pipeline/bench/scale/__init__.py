"""Tests of the benchmarks of large stores."""
