"""The page of standing questions in Chromium: a preview, a question that is added, muted and removed."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.support.desk_page import CAMERAS, SECONDS, WAIT, go

pytestmark = pytest.mark.system


def test_a_standing_question_is_tried_added_muted_and_removed(page: Page, desk: str) -> None:
    go(page, "standing", "Standing questions")
    expect(page.get_by_text("No standing questions")).to_be_visible()
    page.get_by_role("button", name="Add a standing question").click()
    box = page.get_by_role("dialog")
    box.get_by_label("What to watch for").fill("a red dog")
    box.get_by_role("button", name="Preview").click()
    expect(box.get_by_role("heading", name="Scores of the last day")).to_be_visible()
    scores = box.get_by_role("img", name=re.compile("^Histogram of "))
    expect(scores).to_have_attribute("aria-label", re.compile(rf"Histogram of {SECONDS * len(CAMERAS)} scores"))
    assert scores.evaluate("canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, 100).data.some(Boolean)")
    expect(box.get_by_role("heading", name=re.compile("It would (not )?have fired"))).to_be_visible()
    box.get_by_role("button", name="Add", exact=True).click()

    entry = page.get_by_role("article", name="a red dog")
    expect(entry).to_contain_text("active")
    expect(box).to_have_count(0)
    entry.get_by_role("button", name="History").click()
    expect(box).to_contain_text("It has not fired yet.")
    page.keyboard.press("Escape")
    entry.get_by_role("button", name="Mute", exact=True).click()
    expect(entry).to_contain_text("muted")
    stored = httpx.get(f"{desk}/api/v1/standing", timeout=WAIT / 1000).json()["items"]
    assert [(each["text"], each["muted"]) for each in stored] == [("a red dog", True)]
    entry.get_by_role("button", name="Unmute").click()
    expect(entry).to_contain_text("active")
    entry.get_by_role("button", name="Delete").click()
    box.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No standing questions")).to_be_visible()
    assert httpx.get(f"{desk}/api/v1/standing", timeout=WAIT / 1000).json()["items"] == []
