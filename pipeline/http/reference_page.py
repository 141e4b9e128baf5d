"""The page `/docs` of the model service: its routes and the fields of their requests, from the OpenAPI schema.

One page of HTML without scripts, so that it needs no other host and can do nothing with a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.pages import page

__all__ = ["Field", "Route", "reference_page", "routes_of"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request."""

    name: str
    """Name, with the names of the objects that contain it."""
    kind: str
    """Type, such as `list of text`."""
    required: bool
    """Whether the request is invalid without it."""
    text: str
    """What it means."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route."""

    method: str
    """`GET` or `POST`."""
    path: str
    """Path."""
    text: str
    """What it does."""
    fields: tuple[Field, ...]
    """Fields of the body."""


def reference_page(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI schema, as HTML."""
    return page("service.html.j2", title=schema["info"]["title"], routes=routes_of(schema))


def routes_of(schema: dict[str, Any]) -> list[Route]:
    """The routes of an OpenAPI schema, in its order."""
    found = []
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            fields = tuple(_fields(schema, body)) if body else ()
            found.append(Route(method.upper(), path, route.get("description", ""), fields))
    return found


def _fields(schema: dict[str, Any], body: dict[str, Any], within: str = "") -> list[Field]:
    """The fields of an object, and of the objects in it."""
    target = _resolved(schema, body)
    found = []
    for name, field in target.get("properties", {}).items():
        text = str(field.get("description", ""))
        found.append(Field(within + name, _kind(schema, field), name in target.get("required", ()), text))
        for part in field.get("anyOf", [field]):
            repeated = part.get("type") == "array"
            inner = part.get("items", {}) if repeated else part
            if "$ref" in inner:
                found += _fields(schema, inner, f"{within}{name}{'[]' if repeated else ''}.")
    return found


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The schema that `$ref` names, or `part` itself."""
    name = str(part.get("$ref", "")).rpartition("/")[2]
    return dict(schema["components"]["schemas"][name]) if name else part


def _kind(schema: dict[str, Any], field: dict[str, Any]) -> str:
    """Type of a field in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(schema, part) for part in field["anyOf"]))
    if "$ref" in field:
        return "object"
    if "const" in field or "enum" in field:
        return " or ".join(repr(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(schema, field.get('items', {}))}"
    names = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "object"}
    return names.get(str(field.get("type", "any value")), str(field.get("type", "any value")))
