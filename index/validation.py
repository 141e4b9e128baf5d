"""Validation errors of pydantic as one sentence. Light: imports pydantic and the error tree only."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from index.errors import UsageError, mask_url

__all__ = ["validate", "validation_message"]

ModelType = TypeVar("ModelType", bound=BaseModel)


def validation_message(error: ValidationError) -> str:
    """The first problem of `error` as `FIELD.FIELD: MESSAGE`, without the invalid value and without credentials."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return mask_url(f"{place}: {message}" if place else message)


def validate(model: type[ModelType], values: object, source: str) -> ModelType:
    """Validate `values`, which come from a person.

    Args:
        model: the pydantic model that they must fit.
        values: a mapping of field names to values.
        source: where they come from, such as a file's name or an option; the error message begins with it.

    Raises:
        UsageError: a value is missing, unknown or invalid; the message names it.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {validation_message(error)}") from None
