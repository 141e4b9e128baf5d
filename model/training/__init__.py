"""Training of whole models on conversations about footage."""
