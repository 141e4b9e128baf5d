"""Where footage is read from: files, URLs, the URL policy, start times."""
