"""Beam backfills of archives."""
