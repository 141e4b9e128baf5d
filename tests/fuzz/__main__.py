"""`python -m tests.fuzz media --cases 10000 --seed 7`: the long form of a fuzzing driver; prints JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from tests.fuzz.media import fuzz_media


def main() -> int:
    """Run one driver. Exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("driver", choices=["media"])
    parser.add_argument("--cases", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz_media(Path(folder), seed=given.seed, cases=given.cases, first=given.first)
    print(json.dumps({**asdict(replace(result, outcomes=Counter())), "outcomes": result.outcomes}, indent=1))  # noqa: T201
    return int(bool(result.failures))


if __name__ == "__main__":
    sys.exit(main())
