"""The patch store: rows of the `patches` table and how patches are encoded."""
