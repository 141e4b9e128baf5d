"""Optional dependencies: which extra of the distribution installs a module, and the error that says so.

`pip install sightline` installs what the client, the store, ingest of files and `ask` need. Everything else is an
extra; see `[project.optional-dependencies]` in pyproject.toml. A command imports the modules of its extra only when it
runs, and the command line turns the `ModuleNotFoundError` into `ExtraMissing`.
"""

from __future__ import annotations

from importlib.util import find_spec

from index.errors import ExtraMissing

__all__ = ["EXTRA_OF_MODULE", "missing_extra", "require_extra"]

EXTRA_OF_MODULE = {
    "accelerate": "train",
    "apache_beam": "beam",
    "argon2": "web",
    "authlib": "web",
    "cramjam": "kafka",
    "crc32c": "kafka",
    "cryptography": "web",
    "fastapi": "service",
    "google": "beam",
    "grpc": "beam",
    "kafka": "kafka",
    "itsdangerous": "web",
    "joserfc": "web",
    "lz4": "kafka",
    "matplotlib": "train",
    "mcp": "mcp",
    "python_multipart": "web",
    "starlette": "service",
    "uvicorn": "service",
    "vllm": "vllm",
    "yaml": "train",
}
"""The extra that installs a top-level module."""


def _error(module: str, extra: str, what: str) -> ExtraMissing:
    return ExtraMissing(
        f"{what} needs the extra `{extra}` ({module} is not installed): pip install 'sightline[{extra}]'"
    )


def missing_extra(error: ModuleNotFoundError, what: str = "this command") -> ExtraMissing | None:
    """Return the error for an import that failed because an extra is not installed.

    Args:
        error: the failed import.
        what: the subject of the message, such as "sightline consume".

    Returns:
        The error to raise or show, or None if no extra installs that module.
    """
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    return None if extra is None else _error(module, extra, what)


def require_extra(extra: str, what: str) -> None:
    """Check without importing anything that the modules of an extra are installed.

    Raises:
        ExtraMissing: one of them is not installed.
    """
    for module, owner in EXTRA_OF_MODULE.items():
        if owner == extra and find_spec(module) is None:
            raise _error(module, extra, what)
