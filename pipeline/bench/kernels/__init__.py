"""Benchmarks of kernels: one operation on one device, against its plain form."""
