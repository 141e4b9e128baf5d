"""The model that answers, as OpenAI's `GET /v1/models` lists it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["ModelList", "ServedModel"]


class ServedModel(BaseModel):
    """The model profile, in OpenAI's format."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """Name of the profile."""
    object: Literal["model"] = "model"
    """Kind of the object."""
    created: int
    """When the process was started, in seconds since 1970."""
    owned_by: Literal["sightline"] = "sightline"
    """Owner of the model."""


class ModelList(BaseModel):
    """The models in OpenAI's format; there is one."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    """Kind of the object."""
    data: list[ServedModel]
    """The models."""
