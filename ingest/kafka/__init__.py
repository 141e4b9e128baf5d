"""Kafka: the publisher of segments, the worker that stores them, dead letters, and the reader of alerts."""
