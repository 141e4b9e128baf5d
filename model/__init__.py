"""Encoders, DFM, connector and language model: frames in, answers out."""
