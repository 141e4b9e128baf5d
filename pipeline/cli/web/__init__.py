"""Commands of the web desk: serve and what belongs to it."""
