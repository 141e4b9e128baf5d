"""The bearer token of the model service, as either side reads it: from a file or the environment, never a command line."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from index.errors import UsageError

__all__ = ["read_token"]

_SHORTEST_TOKEN = 16
_LONGEST_TOKEN = 4096


def read_token(file: Path | None, value: SecretStr | None) -> SecretStr | None:
    """The token in `file`, else `value` (from the environment), else None.

    Raises:
        UsageError: a file that cannot be read, or a token that is too short or not printable ASCII without blanks.
    """
    where = str(file) if file is not None else "SIGHTLINE_SERVICE_TOKEN"
    if file is not None:
        try:
            with file.open("rb") as opened:
                text = opened.read(_LONGEST_TOKEN + 2).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not ASCII"
            raise UsageError(f"{where}: the token cannot be read ({reason})") from None
    elif value is not None:
        text = value.get_secret_value().strip()
    else:
        return None
    if not _SHORTEST_TOKEN <= len(text) <= _LONGEST_TOKEN or not all("!" <= letter <= "~" for letter in text):
        raise UsageError(
            f"{where}: a token is {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} printable ASCII characters without blanks"
        )
    return SecretStr(text)
