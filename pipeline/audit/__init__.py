"""The audit trail: who did what, when, from where, on which streams."""
