"""`forget` and `compact` leave what is held, and say so."""

from __future__ import annotations

import json
from pathlib import Path

from index.store import Store
from tests.support.command import Command
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment


def test_forget_is_refused_or_leaves_what_is_held_and_compact_says_how_much(sightline: Command, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    for chunk in range(2):
        records = make_records("gate", BEGAN + 20 * chunk * SECOND, seed=chunk)
        store.append(make_segment(records, chunk), records)
    store.hold("gate", BEGAN + 3 * SECOND, BEGAN + 9 * SECOND, reason="case 7", placed_by="ada")
    place = ("--store", store.url)
    refused = sightline("forget", "--stream", "gate", *place, "--yes")
    assert refused.code == 1
    assert "is held as evidence by ada (case 7); nothing was deleted" in refused.err
    assert "--except-held" in refused.err
    done = sightline("forget", "--stream", "gate", *place, "--before", "2024-03-01T08:00:20Z", "--yes", "--except-held")
    assert "14 frames of gate deleted\n6 seconds of gate are held as evidence and stay\n" in done.out
    (tmp_path / "rules.toml").write_text('[retention]\n"*" = {days = 1}\n')
    compacted = sightline("compact", *place, "--config", tmp_path / "rules.toml")
    assert "20 frames deleted" in compacted.out
    assert "; 6 seconds are held as evidence and stay" in compacted.out
    last = sightline("forget", "--stream", "gate", *place, "--yes", "--except-held", "--json")
    assert {name: json.loads(last.out)[name] for name in ("frames", "held")} == {"frames": 0, "held": 6}
