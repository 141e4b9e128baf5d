"""The page of streams in Chromium, its keys, colours and help, against a real `sightline serve`."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.desk_page import go

pytestmark = pytest.mark.system


def test_streams_show_what_the_store_has(page: Page, streams: list[dict[str, Any]]) -> None:
    go(page, "streams", "Streams")
    for stream in streams:
        card = page.get_by_role("article", name=stream["stream_id"])
        expect(card).to_contain_text(str(stream["frames"]))
        expect(card.get_by_role("img").first).to_have_js_property("complete", True)
        assert card.locator("img").evaluate("image => image.naturalWidth") > 100
        bars = card.get_by_role("slider", name=f"Footage of {stream['stream_id']} by day")
        bars.focus()
        assert "UTC" in (bars.get_attribute("aria-valuetext") or "")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name=streams[-1]["stream_id"])).to_be_visible()


def test_a_time_is_shown_in_the_chosen_zone_and_in_utc(page: Page, streams: list[dict[str, Any]]) -> None:
    utc = streams[0]["first"][11:19]
    go(page, "streams", "Streams")
    card = page.get_by_role("article", name=streams[0]["stream_id"])
    expect(card).to_contain_text(f"+02:00UTC {utc}")
    page.get_by_label("Time zone").select_option("Asia/Tokyo")
    expect(card).to_contain_text(f"+09:00UTC {utc}")
    page.reload()
    expect(page.get_by_label("Time zone")).to_have_value("Asia/Tokyo")


def test_the_page_is_small_and_soon_there(page: Page) -> None:
    sizes: list[int] = []
    page.on("response", lambda reply: sizes.append(len(reply.body())) if "/api/" not in reply.url else None)
    go(page, "streams", "Streams")
    page.wait_for_load_state("load")
    assert 50_000 < sum(sizes) <= 500_000


def test_keys_theme_and_help(page: Page) -> None:
    go(page, "streams", "Streams")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Light or dark")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    before = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("d")
    assert page.evaluate("document.documentElement.dataset.theme") != before
    page.keyboard.press("g")
    page.keyboard.press("f")
    expect(page.get_by_role("heading", level=1, name="Search")).to_be_visible()
    page.keyboard.type("d")  # into the query, which has the focus
    expect(page.get_by_label("What to search for")).to_have_value("d")
