"""Bearer token of the model service, read from a file or the environment, never from the command line."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from index.errors import UsageError

__all__ = ["read_token"]

_MIN_TOKEN_LENGTH = 16
_MAX_TOKEN_LENGTH = 4096


def read_token(file: Path | None, value: SecretStr | None) -> SecretStr | None:
    """The token in `file`; without a file `value`, which is the setting `service_token`; None without either.

    Raises:
        UsageError: the file is not readable, or the token is too short, too long, or not printable ASCII without
            blanks.
    """
    where = str(file) if file is not None else "SIGHTLINE_SERVICE_TOKEN"
    if file is not None:
        try:
            with file.open("rb") as opened:
                text = opened.read(_MAX_TOKEN_LENGTH + 2).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not ASCII"
            raise UsageError(f"{where}: the token file is not readable ({reason})") from None
    elif value is not None:
        text = value.get_secret_value().strip()
    else:
        return None
    if not _MIN_TOKEN_LENGTH <= len(text) <= _MAX_TOKEN_LENGTH or not all("!" <= letter <= "~" for letter in text):
        raise UsageError(
            f"{where}: a token must be {_MIN_TOKEN_LENGTH} to {_MAX_TOKEN_LENGTH} printable ASCII characters without "
            "blanks"
        )
    return SecretStr(text)
