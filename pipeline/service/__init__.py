"""The model service over HTTP, and its client."""
