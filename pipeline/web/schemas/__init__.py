"""Bodies and replies of the API."""
