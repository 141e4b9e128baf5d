"""Segments, stretches of compressed footage that travel as one unit: cutting, naming, decoding."""
