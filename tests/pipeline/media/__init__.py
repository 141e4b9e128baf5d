"""Tests of playing and clips."""
