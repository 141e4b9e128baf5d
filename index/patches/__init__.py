"""Patch tokens in the store: the encodings of patches as bytes, and the rows of the table `patches`."""
