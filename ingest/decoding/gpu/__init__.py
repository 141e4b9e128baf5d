"""Decoding on an NVIDIA GPU, in the same confined processes."""
