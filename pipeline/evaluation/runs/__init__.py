"""Runs of benchmarks: footage into the store, questions to the model, results to files, and reports of them."""
