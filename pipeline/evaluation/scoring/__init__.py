"""Scores of replies, spans and rankings, and the uncertainty of their means. Knows no data set, store or model."""
