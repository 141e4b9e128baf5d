"""HTML pages from the templates of this package; every value is escaped, and a missing one is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["page", "write_page"]


def page(template: str, **values: Any) -> str:
    """`templates/TEMPLATE` filled with `values`."""

    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def write_page(path: Path, text: str) -> Path:
    """Write `text` to `path`, which appears only when it is whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path
