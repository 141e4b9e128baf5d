"""Atomic appends to the store: with the offsets they were read at, or written first and committed in bulk."""
