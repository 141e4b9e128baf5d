"""The selectors by name: `--selector NAME`, `selector` in a profile, and a row of every comparison."""

from __future__ import annotations

from typing import Literal, get_args

from index.selectors.baselines import top_k, uniform
from index.selectors.dks import dks
from index.selectors.dpp import dpp
from index.selectors.inverse import inverse
from index.selectors.segments import segments
from index.selectors.selector import Selector

__all__ = ["SELECTORS", "SelectorName"]

SelectorName = Literal["dks", "inverse", "segments", "dpp", "top-k", "uniform"]
"""Name of a selector."""

SELECTORS: dict[SelectorName, Selector] = {
    "dks": dks,
    "inverse": inverse,
    "segments": segments,
    "dpp": dpp,
    "top-k": top_k,
    "uniform": uniform,
}
"""The selectors, the default first."""

if set(SELECTORS) != set(get_args(SelectorName)):  # a name without a selector would fail only when it is used
    raise RuntimeError("index.selectors.registry: SELECTORS and SelectorName differ")
