"""Preliminary studies: what the language model attends to among frames and patches (ViLAMP, section 3)."""
