"""The Markdown pages of the project and the code blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ROOT

__all__ = ["GUIDES", "Block", "blocks_of", "pages"]

GUIDES = (
    "getting-started.md",
    *(f"guides/{name}.md" for name in ("investigator", "operator", "data-engineer", "model-service")),
)
"""Pages below `docs/` whose commands are executed, each after those of the README."""

_FENCE = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"# needs (the network|a GPU|Kafka|cameras|Docker|an archive|a plan|a browser|Kubernetes)\b")


@dataclass(frozen=True, slots=True)
class Block:
    """One code block of a page."""

    kind: str
    """`sh` or `python`."""
    text: str
    """The code."""

    @property
    def executable(self) -> bool:
        """Whether the block runs on any machine; one that does not says in its first line what it needs."""
        return _MARK.match(self.text) is None


def blocks_of(page: Path) -> list[Block]:
    """The `sh` and `python` blocks of a page, in order."""
    return [Block(kind, text) for kind, text in _FENCE.findall(page.read_text())]


def pages() -> list[Path]:
    """Every Markdown page that is written by hand: those of the root and those below `docs/`."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
