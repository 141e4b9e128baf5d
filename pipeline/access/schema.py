"""The tables of users, sessions, tokens and questions, as the scripts that `StateDatabase` runs in order.

Times are seconds since 1970. Ids of sessions and secrets of tokens are stored as SHA-256 digests: both are random with
256 bits, so that a slow hash would protect nothing.
"""

from __future__ import annotations

__all__ = ["MIGRATIONS"]

MIGRATIONS = (
    """
    CREATE TABLE users (
        name TEXT PRIMARY KEY,
        password TEXT,
        issuer TEXT,
        subject TEXT,
        created REAL NOT NULL,
        UNIQUE (issuer, subject)
    ) STRICT;
    CREATE TABLE grants (
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        pattern TEXT NOT NULL,
        role TEXT NOT NULL,
        source TEXT NOT NULL,
        PRIMARY KEY (user, pattern, source)
    ) STRICT;
    CREATE TABLE sessions (
        digest BLOB PRIMARY KEY,
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        via TEXT NOT NULL,
        created REAL NOT NULL,
        seen REAL NOT NULL
    ) STRICT;
    CREATE INDEX sessions_of_user ON sessions (user);
    CREATE TABLE tokens (
        prefix TEXT PRIMARY KEY,
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        label TEXT NOT NULL,
        digest BLOB NOT NULL,
        scopes TEXT NOT NULL,
        created REAL NOT NULL,
        expires REAL NOT NULL,
        used REAL
    ) STRICT;
    CREATE INDEX tokens_of_user ON tokens (user);
    """,
    """
    ALTER TABLE users ADD COLUMN disabled INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE users ADD COLUMN logged_in REAL;
    """,
    """
    CREATE TABLE questions (
        id TEXT PRIMARY KEY,
        user TEXT NOT NULL,
        asked INTEGER NOT NULL,
        streams TEXT NOT NULL,
        document TEXT NOT NULL
    ) STRICT;
    CREATE INDEX questions_of_user ON questions (user, asked);
    CREATE TABLE standing (
        id TEXT PRIMARY KEY,
        muted INTEGER NOT NULL DEFAULT 0,
        webhook TEXT,
        secret TEXT
    ) STRICT;
    CREATE TABLE fired (
        question TEXT NOT NULL,
        stream TEXT NOT NULL,
        start INTEGER NOT NULL,
        document TEXT NOT NULL,
        PRIMARY KEY (question, stream, start)
    ) STRICT;
    """,
    """
    CREATE TABLE following (
        stream TEXT PRIMARY KEY,
        state TEXT NOT NULL
    ) STRICT;
    """,
)
