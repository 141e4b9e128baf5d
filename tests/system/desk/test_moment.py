"""The page of a moment in Chromium, against a real `sightline serve`."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.support.desk_page import go, moment_of

pytestmark = pytest.mark.system


def test_a_moment_shows_player_strip_and_other_streams(page: Page, streams: list[dict[str, Any]]) -> None:
    first, second = streams[0], streams[1]
    go(page, moment_of(first), first["stream_id"])
    clock = page.locator(".player-clock")
    expect(clock).to_contain_text(f"UTC {first['last'][11:19]}")
    expect(page.locator(".strip-frame[aria-current]")).to_have_attribute("aria-label", re.compile(first["last"][11:19]))
    page.keyboard.press("ArrowLeft")
    expect(clock).not_to_contain_text(f"UTC {first['last'][11:19]}")
    page.get_by_role("link", name=re.compile(f"^{second['stream_id']} at ")).click()
    expect(page.get_by_role("heading", level=1, name=second["stream_id"])).to_be_visible()


def test_the_footage_plays(page: Page, streams: list[dict[str, Any]]) -> None:
    """Chromium decodes what `/play` sends: its time advances, and pictures of it are shown."""
    stream = streams[0]
    with page.expect_response(re.compile("/api/v1/play")) as sent:
        go(page, f"moment?stream={stream['stream_id']}&at={quote(stream['first'])}", stream["stream_id"])
    assert sent.value.status == 206
    player = page.get_by_role("group", name=f"Player of {stream['stream_id']}")
    expect(player).to_have_attribute("data-mode", "video")
    clock = page.locator(".player-clock")
    expect(clock).to_contain_text(f"UTC {stream['first'][11:19]}")
    began = page.evaluate("document.querySelector('video').currentTime")
    player.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("began => document.querySelector('video').currentTime > began + 1.5", arg=began)
    shown = page.evaluate("document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames")
    assert shown > 1
    player.get_by_role("button", name="Pause", exact=True).click()
    expect(clock).not_to_contain_text(f"UTC {stream['first'][11:19]}")
    assert page.evaluate("document.querySelector('video').error") is None
