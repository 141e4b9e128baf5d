"""Questions over a store: asking and searching."""
