"""Tests of `index.search.ann`."""
