"""What was seen, stored and found again: keyframes (DKS), the store of frames and patches, search, retention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from index.keyframes import select_keyframes
    from index.store import Store

__all__ = ["Store", "select_keyframes"]


def __getattr__(name: str) -> Any:
    if name == "Store":
        from index.store import Store

        return Store
    if name == "select_keyframes":
        from index.keyframes import select_keyframes

        return select_keyframes
    raise AttributeError(f"module 'index' has no attribute {name!r}")
