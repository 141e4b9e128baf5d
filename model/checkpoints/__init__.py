"""Reading weights from disk and from the hub."""
