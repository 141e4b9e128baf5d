"""Sources of footage: files and URLs, the URL policy, start times."""
