"""The `sightline` command, also as `python -m sightline`.

Importing the package `sightline` checks first that no file of the user replaces one of its four packages.
"""

from __future__ import annotations

from pipeline.cli.main import run

__all__ = ["run"]

if __name__ == "__main__":
    run()
