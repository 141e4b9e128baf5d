"""Training of a profile on conversations about footage."""
