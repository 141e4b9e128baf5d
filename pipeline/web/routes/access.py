"""What routes about users and the audit trail need of the application."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from index.errors import Forbidden
from pipeline.access.authentication import Authentication
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.audit.log import AuditLog
from pipeline.web.address import DeskAddress

__all__ = ["AddressOf", "AuditLogOf", "AuthenticationOf", "require_everywhere"]


def _authentication(request: Request) -> Authentication:
    found: Authentication = request.app.state.authentication
    return found


def _audit_log(request: Request) -> AuditLog:
    found: AuditLog = request.app.state.audit_log
    return found


def _address(request: Request) -> DeskAddress:
    found: DeskAddress = request.app.state.address
    return found


AuthenticationOf = Annotated[Authentication, Depends(_authentication)]
"""Type of a handler's parameter that is the users, sessions and tokens of the desk."""
AuditLogOf = Annotated[AuditLog, Depends(_audit_log)]
"""Type of a handler's parameter that is the audit trail."""
AddressOf = Annotated[DeskAddress, Depends(_address)]
"""Type of a handler's parameter that is the address of the desk."""


def require_everywhere(caller: Caller, action: Action) -> None:
    """Raise Forbidden unless the caller may do something with all streams.

    An administrator of some streams manages neither users nor reads the audit trail: both concern all streams.
    """
    if not caller.may_everywhere(action):
        raise Forbidden(f"{caller.name} may not {action.value} for all streams; ask an administrator of all")
