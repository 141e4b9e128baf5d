"""`python -m tests.fuzz media --cases 10000 --seed 7`: the long form of a fuzzing driver; prints JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.fuzz.messages import errors_only

DRIVERS: dict[str, tuple[int, Callable[[Any, Path, argparse.Namespace], Any]]] = {
    "http": (5000, lambda m, folder, o: m.fuzz_http(folder, seed=o.seed, cases=o.cases, first=o.first)),
    "kills": (60, lambda m, folder, o: m.fuzz_kills(folder, seed=o.seed, cases=o.cases)),
    "media": (10_000, lambda m, folder, o: m.fuzz_media(folder, seed=o.seed, cases=o.cases, first=o.first)),
    "messages": (100_000, lambda m, folder, o: m.fuzz_messages(folder, seed=o.seed, cases=o.cases)),
    "urls": (1000, lambda m, folder, o: m.fuzz_urls(folder, seed=o.seed, cases=o.cases, first=o.first)),
    "names": (3000, lambda m, folder, o: m.fuzz_names(folder, seed=o.seed, cases=o.cases, first=o.first)),
    "sequences": (2000, lambda m, _, o: m.fuzz_sequences(seed=o.seed, cases=o.cases)),
}
"""By the name of the module: how many cases a long run has, and how it is started."""


def main() -> int:
    """Run one driver. Exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("driver", choices=sorted(DRIVERS))
    parser.add_argument("--cases", type=int, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    cases, run = DRIVERS[given.driver]
    given.cases = given.cases or cases
    with errors_only(), tempfile.TemporaryDirectory() as folder:  # standard output is for the result
        result = run(importlib.import_module(f"tests.fuzz.{given.driver}"), Path(folder), given)
    print(json.dumps({**asdict(replace(result, outcomes=Counter())), "outcomes": result.outcomes}, indent=1))  # noqa: T201
    return int(bool(result.failures))


if __name__ == "__main__":
    sys.exit(main())
