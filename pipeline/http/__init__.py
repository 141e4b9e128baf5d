"""What every HTTP server of Sightline does with a request before a route sees it."""
