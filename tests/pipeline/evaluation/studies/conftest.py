"""Tiny random models for the studies."""

from tests.support.tiny_models import answerer, checkpoints, encoders, profile

__all__ = ["answerer", "checkpoints", "encoders", "profile"]
