"""Evidence locks in a folder or bucket of recordings: marker files that `record --keep-days` obeys without the store.

    <place>/.holds/<id>.json      a `Hold`; the name of a stream never begins with a full stop

A marker is written after the hold is in the store, and removed after it is released there. Expiry lists the markers
again before each segment that it deletes. A marker that cannot be read keeps everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import ValidationError

from index.commits.held import Hold
from index.delta.objects import file_system, object_reason, open_object
from index.errors import SourceNotFound, mask_url
from index.files import write_atomically

__all__ = ["FOLDER", "Markers", "place_marker", "remove_marker"]

FOLDER = ".holds"
"""Name of the folder of the markers."""
_NAME = re.compile(r"([0-9a-f]{16})\.json")


def place_marker(place: str, hold: Hold) -> None:
    """Write the marker of a hold.

    Args:
        place: the URL of the recordings' folder or bucket.
        hold: the hold.

    Raises:
        SourceNotFound: it cannot be written.
    """
    uri = f"{place.rstrip('/')}/{FOLDER}/{hold.id}.json"
    try:
        if uri.startswith("file://"):
            write_atomically(Path(unquote(uri.removeprefix("file://"))), hold.model_dump_json(), parents=True)
        else:
            with open_object(uri, "wb") as file:
                file.write(hold.model_dump_json().encode())
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(uri)}: cannot be written ({object_reason(error)})") from None


def remove_marker(place: str, hold_id: str) -> bool:
    """Remove the marker of a hold; whether there was one. Raises SourceNotFound if it cannot be removed."""
    uri = f"{place.rstrip('/')}/{FOLDER}/{hold_id}.json"
    try:
        system, path = file_system(uri)
        system.invalidate_cache()
        if not system.exists(path):
            return False
        system.rm_file(path)
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(uri)}: cannot be removed ({object_reason(error)})") from None
    return True


class Markers:
    """The markers of a place; each is read once.

    Args:
        system: the file system, of fsspec.
        root: path of the recordings in it.
    """

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._folder = system, f"{root.rstrip('/')}/{FOLDER}"
        self._read: dict[str, Hold] = {}

    def holds(self) -> Sequence[Hold]:
        """The holds whose markers are there now.

        Raises:
            SourceNotFound: a marker cannot be read.
        """
        self._system.invalidate_cache()
        try:
            names = self._system.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        found = {}
        for name in names:
            if _NAME.fullmatch(str(name).rstrip("/").rsplit("/", 1)[-1]) is None:
                continue
            try:
                found[name] = self._read.get(name) or Hold.model_validate_json(self._system.cat_file(name))
            except FileNotFoundError:  # released in between
                continue
            except ValidationError:
                raise SourceNotFound(
                    f"{name}: the marker of an evidence lock is damaged, so no recording is deleted; repair it"
                ) from None
        self._read = found
        return list(found.values())
