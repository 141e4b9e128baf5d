"""The public Python API of Sightline.

    import sightline

    report = sightline.ingest_sources(["footage"], store=store, encoders=encoders)
    asked = sightline.ask("Where was the red dog?", store="store", options=["bench", "door", "gate"])

Every name in `__all__` is kept compatible; the packages `index`, `ingest`, `model` and `pipeline` stay importable, but
their modules may move. A name is imported on first use (PEP 562): `import sightline` loads neither torch nor pyarrow.

The four packages have common names. A file or folder of the same name that Python finds first, such as a `model.py`
beside the user's script, would replace one of them; importing `sightline` raises an `ImportError` then, which names the
file.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

_ROOT = Path(__file__).parents[1]


def _location(package: str) -> str | None:
    """Return the file or folder that `import package` loads, or None if there is none."""
    try:
        spec = find_spec(package)
    except ValueError:  # a module that was put into sys.modules by hand
        return getattr(sys.modules[package], "__file__", None) or "an entry of sys.modules"
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _check_packages() -> None:
    """Raise an ImportError if another file or folder has the name of one of the four packages and is found first."""
    for package in ("index", "ingest", "model", "pipeline"):
        expected, found = _ROOT / package / "__init__.py", _location(package)
        if found == str(expected) or (found is not None and Path(found).resolve() == expected.resolve()):
            continue
        if found is None:
            raise ImportError(
                f"Sightline is installed incompletely: its package `{package}` is missing from {_ROOT}; "
                "install it again: pip install --force-reinstall --no-deps sightline",
                name=package,
            )
        raise ImportError(
            f"{found} shadows the package `{package}` of Sightline: Python finds it before {expected.parent}. "
            "Rename it, or run Python from another folder (for a module: python -P -m NAME)",
            name=package,
            path=found,
        )


_check_packages()

if TYPE_CHECKING:
    from index.errors import (
        AccessError,
        AuditBroken,
        BackfillFailed,
        BrokerUnavailable,
        BudgetExceeded,
        CommitFenced,
        DeadlineExceeded,
        DecodeFailed,
        EmptyWindow,
        EngineMissing,
        EvidenceInvalid,
        ExtraMissing,
        FootageHeld,
        Forbidden,
        GpuUnavailable,
        IdentityMismatch,
        KafkaProblem,
        LoginRequired,
        MessageInvalid,
        MessageTooLarge,
        ModelError,
        NoFrames,
        NotVideo,
        OffsetsExpired,
        OutOfMemory,
        PictureInvalid,
        ProfileInvalid,
        SandboxUnavailable,
        ServiceBusy,
        ServiceDenied,
        ServiceError,
        ServiceUnavailable,
        SightlineError,
        SourceDenied,
        SourceError,
        SourceNotFound,
        SourceStalled,
        SourceUnsupported,
        StartImplausible,
        StoreBusy,
        StoreCorrupt,
        StoreDenied,
        StoreError,
        StoreFull,
        StoreNotFound,
        StoreUnavailable,
        StoreVersion,
        StreamConflict,
        TooManyAttempts,
        TopicMissing,
        TopicRecreated,
        TrainingDataInvalid,
        TrainingFailed,
        UnknownFrame,
        UnknownItem,
        UnknownQuestion,
        UnknownStream,
        UsageError,
        WeightsInvalid,
        WeightsNotFound,
    )
    from index.keyframes import select_keyframes
    from index.store import Store
    from ingest.decoding.frame import Frame
    from ingest.decoding.sandbox import read_frames
    from ingest.file_ingest import ingest_sources
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile
    from model.visual.dfm import merge
    from pipeline.questions.asker import Asker, ask
    from pipeline.questions.search import search

    __version__: str

__all__ = [
    "AccessError",
    "Asker",
    "AuditBroken",
    "BackfillFailed",
    "BrokerUnavailable",
    "BudgetExceeded",
    "CommitFenced",
    "DeadlineExceeded",
    "DecodeFailed",
    "EmptyWindow",
    "EngineMissing",
    "EvidenceInvalid",
    "ExtraMissing",
    "FootageHeld",
    "Forbidden",
    "Frame",
    "GpuUnavailable",
    "IdentityMismatch",
    "KafkaProblem",
    "LoginRequired",
    "MessageInvalid",
    "MessageTooLarge",
    "ModelError",
    "NoFrames",
    "NotVideo",
    "OffsetsExpired",
    "OutOfMemory",
    "PictureInvalid",
    "ProfileInvalid",
    "SandboxUnavailable",
    "ServiceBusy",
    "ServiceDenied",
    "ServiceError",
    "ServiceUnavailable",
    "SightlineError",
    "SourceDenied",
    "SourceError",
    "SourceNotFound",
    "SourceStalled",
    "SourceUnsupported",
    "StartImplausible",
    "Store",
    "StoreBusy",
    "StoreCorrupt",
    "StoreDenied",
    "StoreError",
    "StoreFull",
    "StoreNotFound",
    "StoreUnavailable",
    "StoreVersion",
    "StreamConflict",
    "TooManyAttempts",
    "TopicMissing",
    "TopicRecreated",
    "TrainingDataInvalid",
    "TrainingFailed",
    "UnknownFrame",
    "UnknownItem",
    "UnknownQuestion",
    "UnknownStream",
    "UsageError",
    "WeightsInvalid",
    "WeightsNotFound",
    "__version__",
    "ask",
    "ingest_sources",
    "load_encoders",
    "load_profile",
    "merge",
    "read_frames",
    "search",
    "select_keyframes",
]

# Where each name that is not an error is defined.
_DEFINED_IN = {
    "Asker": "pipeline.questions.asker",
    "Frame": "ingest.decoding.frame",
    "Store": "index.store",
    "ask": "pipeline.questions.asker",
    "ingest_sources": "ingest.file_ingest",
    "load_encoders": "model.encoders.encoder",
    "load_profile": "model.profiles.profile",
    "merge": "model.visual.dfm",
    "read_frames": "ingest.decoding.sandbox",
    "search": "pipeline.questions.search",
    "select_keyframes": "index.keyframes",
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use.

    Raises:
        AttributeError: `name` is not part of the API.
    """
    if name == "__version__":
        value: Any = _version()
    elif name in __all__:
        value = getattr(import_module(_DEFINED_IN.get(name, "index.errors")), name)
    else:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """Return the version of the installed distribution; pyproject.toml is its only source."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sightline")
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        return "0+unknown"
