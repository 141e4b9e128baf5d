"""Accuracy of a profile."""
