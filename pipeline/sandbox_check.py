"""The report of a worker at its start: which layers of confinement its decoders have on this machine.

The layers are those of `ingest.decoding.confinement`. They are tried once a process, in a process of their own.
"""

from __future__ import annotations

from functools import cache

import structlog

from ingest.decoding.confinement import Posture, probe, require

__all__ = ["check_sandbox"]

_log = structlog.get_logger(__name__)


@cache
def _logged_posture() -> Posture:
    posture = probe()
    if posture.sufficient:
        _log.info("decoders are confined", posture=str(posture))
    else:
        _log.warning("decoders are not confined; run `sightline doctor`", posture=str(posture))
    return posture


def check_sandbox(*, required: bool) -> Posture:
    """The posture of this machine. The first call in a process logs it: a warning if a layer that matters is missing.

    Args:
        required: refuse to go on without the layers that matter.

    Raises:
        SandboxUnavailable: `required`, and a layer that matters is missing.
    """
    posture = _logged_posture()
    if required:
        require(posture)
    return posture
