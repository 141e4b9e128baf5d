"""Rules of retention, as the settings file has them. Light to import; `index.maintenance.expiry` applies them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["RetentionRule"]


class RetentionRule(BaseModel):
    """How long footage of some streams is kept, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    days: float | None = Field(default=None, gt=0, le=36_500)
    """Largest age of a frame, in days; fractions are allowed. No limit by default."""
    bytes: int | None = Field(default=None, ge=1)
    """Largest size of one stream in the tables, in bytes. No limit by default."""

    @model_validator(mode="after")
    def _limits_something(self) -> RetentionRule:
        if self.days is None and self.bytes is None:
            raise ValueError("give days, bytes or both")
        return self
