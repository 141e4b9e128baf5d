"""Settings of log-ins through an OpenID Connect provider."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["OidcSettings"]


class OidcSettings(BaseModel):
    """The provider that users of the desk may come from, and what its groups may do."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    issuer: str = ""
    """URL of the provider, which serves `/.well-known/openid-configuration`; empty for none."""
    client_id: str = ""
    """Name of the desk at the provider."""
    client_secret_file: Path | None = None
    """File with the client's secret; without one the desk is a public client, protected by PKCE alone."""
    url: str = ""
    """URL at which browsers reach the desk, to which the provider sends them back, such as https://desk.example."""
    scopes: str = "openid profile email"
    """Scopes to ask for, separated by blanks; some providers need one for the groups."""
    name_claim: str = "preferred_username"
    """Claim with the name of the user; without it `email`, then `sub` is used."""
    groups_claim: str = "groups"
    """Claim with the groups of the user."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What each group may do: a list of `ROLE` or `ROLE:PATTERN`. A user without any of these groups is refused."""
