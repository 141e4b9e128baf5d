"""Tiny random models for the whole session."""

from tests.support.tiny_models import answerer, checkpoints, encoders, own_cache_folder, profile

__all__ = ["answerer", "checkpoints", "encoders", "own_cache_folder", "profile"]
