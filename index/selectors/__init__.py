"""Selectors: how K frames out of N are selected for a question. One file each, numpy only; see `registry`."""
