"""Tiny random models for the whole session."""

from tests.support.tiny_models import answerer, checkpoints, encoders, own_digest_memory, profile

__all__ = ["answerer", "checkpoints", "encoders", "own_digest_memory", "profile"]
