"""The page of exports and holds in Chromium: files that are made, downloaded and checked, and footage that is held."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Locator, Page, expect

from index.records import parse_rfc3339, rfc3339
from tests.support.desk_page import go
from tests.support.played import decoded
from tests.support.processes import environment
from tests.support.records import SECOND

pytestmark = pytest.mark.system


def window_of(stream: dict[str, Any], first: int, last: int) -> dict[str, str]:
    """The stretch between two seconds of a stream, at whole seconds of the clock."""
    began = parse_rfc3339(stream["first"]) // SECOND * SECOND
    return {"start": rfc3339(began + first * SECOND), "end": rfc3339(began + last * SECOND)}


def exported(page: Page, kind: str, stream: dict[str, Any], part: dict[str, str], *, reason: str = "") -> Locator:
    """Fill in the form of an export and send it; the row of its job when the file is there."""
    go(page, f"exports?{urlencode({'stream': stream['stream_id'], **part})}", "Export")
    page.get_by_role("radio", name=re.compile(f"^{kind}")).check()
    page.get_by_label("Reason (part of a bundle)").fill(reason)
    page.get_by_role("button", name="Export", exact=True).click()
    job = page.get_by_role("article", name=re.compile(f"^{kind}: {stream['stream_id']}"))
    expect(job.get_by_role("link", name="Download")).to_be_visible()
    return job


def downloaded(page: Page, job: Locator, folder: Path) -> Path:
    """The file that the link of a job downloads; its bytes have the digest that the page shows."""
    with page.expect_download() as got:
        job.get_by_role("link", name="Download").click()
    path = folder / got.value.suggested_filename
    got.value.save_as(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == job.locator("code").inner_text()
    return path


def test_a_clip_is_made_and_downloaded(page: Page, streams: list[dict[str, Any]], tmp_path: Path) -> None:
    part = window_of(streams[0], 5, 15)
    path = downloaded(page, exported(page, "Clip", streams[0], part), tmp_path)
    assert path.suffix == ".mp4"
    codec, times, pictures = decoded(path.read_bytes())
    assert codec == "h264"
    assert times[-1] - times[0] == pytest.approx(10, abs=1.5)
    assert all(each.std() > 5 for each in (pictures[0], pictures[-1]))  # footage, not a single colour
    page.reload()  # the browser remembers what it exported
    job = page.get_by_role("article", name=re.compile(f"^Clip: {streams[0]['stream_id']}"))
    expect(job.get_by_role("link", name="Download")).to_be_visible()


def test_a_bundle_is_made_and_verified(page: Page, streams: list[dict[str, Any]], tmp_path: Path) -> None:
    """`sightline evidence verify` accepts the downloaded file, away from the store; a changed copy it refuses."""
    part = window_of(streams[1], 4, 9)
    path = downloaded(page, exported(page, "Evidence bundle", streams[1], part, reason="case 12"), tmp_path)

    def verified(bundle: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sightline", "evidence", "verify", str(bundle), "--json"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
        )

    done = verified(path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)["manifest"]
    assert {name: manifest[name] for name in ("stream_id", "start", "end", "reason", "created_by")} == {
        "stream_id": streams[1]["stream_id"],
        **part,
        "reason": "case 12",
        "created_by": "local",
    }
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "changed.zip").write_bytes(changed)
    assert verified(tmp_path / "changed.zip").returncode == 1


def test_footage_is_held_and_released_with_reasons(page: Page, streams: list[dict[str, Any]]) -> None:
    name = streams[0]["stream_id"]
    part = window_of(streams[0], 2, 8)
    go(page, f"exports?{urlencode({'stream': name, **part})}", "Export")
    page.get_by_role("button", name="Hold", exact=True).click()
    box = page.get_by_role("dialog")
    box.get_by_label("Reason, for the audit trail").fill("case 12")
    box.get_by_role("button", name="Hold", exact=True).click()
    held = page.locator("li.hold")
    expect(held).to_contain_text(name)
    expect(held).to_contain_text("case 12 · local")
    held.get_by_role("button", name="Release").click()
    box.get_by_role("button", name="Release").click()
    expect(box).to_be_visible()  # without a reason nothing is released
    box.get_by_label("Reason, for the audit trail").fill("the case is closed")
    box.get_by_role("button", name="Release").click()
    expect(page.get_by_text("Nothing is held")).to_be_visible()
    go(page, "admin?tab=audit", "Administration")
    released = page.get_by_role("row", name=re.compile("the case is closed")).first
    expect(released).to_contain_text("release")
    expect(released).to_contain_text(name)
    expect(released).to_contain_text("held_because: case 12")
    expect(released).to_contain_text(f"start: {part['start']}")
    expect(released).to_contain_text(f"end: {part['end']}")
