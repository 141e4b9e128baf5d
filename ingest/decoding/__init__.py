"""Decoding in a confined process: sampling, packet plan, frames."""
