"""The language model: engines and the key-value cache."""
