"""Decoding of one file in a confined process: sampling, packet plan, decoder, limits, frames."""
