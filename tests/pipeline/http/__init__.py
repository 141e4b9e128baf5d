"""Tests of pipeline.http."""
