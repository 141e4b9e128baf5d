"""The web desk: the API below `/api/v1`, and the page that uses it."""
