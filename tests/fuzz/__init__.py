"""Fuzzing drivers: each has a short form that the tests run and a long form that `python -m tests.fuzz` starts."""
