"""Stretches of compressed footage: cutting, names, decoding."""
