"""Ablations: one part of a profile is changed at a time, and the same questions are asked again."""
