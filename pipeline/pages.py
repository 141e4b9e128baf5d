"""HTML pages from the templates of this package. Every value is escaped, and a missing one is an error."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from index.files import write_atomically

__all__ = ["data_uri", "page", "write_page"]


def page(template: str, **values: Any) -> str:
    """Return `templates/TEMPLATE` filled with `values`."""
    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def data_uri(jpeg: bytes) -> str:
    """A JPEG as a URI that holds it, for pages that need no other file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def write_page(path: Path, text: str) -> Path:
    """Write `text` to `path`, all or nothing, and return `path`."""
    write_atomically(path, text)
    return path
