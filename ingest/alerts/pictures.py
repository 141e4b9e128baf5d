"""Pictures of alerts, saved as files."""

from __future__ import annotations

from pathlib import Path

from index.errors import UsageError
from index.files import write_atomically
from ingest.messages import AlertMessage

__all__ = ["save_picture"]


def save_picture(alert: AlertMessage, folder: Path) -> Path | None:
    """Write the alert's picture to `<stream>_<start>_<id>.jpg` in `folder`, which is created when it is missing.

    Returns:
        The file, or None when the alert has no picture.

    Raises:
        UsageError: the folder cannot be written to.
    """
    jpeg = alert.jpeg()
    if jpeg is None:
        return None
    path = folder / f"{alert.stream}_{alert.start:%Y-%m-%dT%H-%M-%SZ}_{alert.id[:8]}.jpg"
    try:
        write_atomically(path, jpeg, parents=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot write pictures there ({error.strerror}); choose another --pictures"
        ) from None
    return path
