"""Who may do what: roles, callers, users, sessions, tokens."""
