"""Model profiles: which encoders, connector and language model work together."""
