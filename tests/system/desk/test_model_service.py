"""A desk in front of a model service that is killed in the middle of an answer, in Chromium."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import desk_server, window
from tests.support.desk_page import WAIT, go
from tests.support.halting_service import BEGUN, start_service
from tests.support.kafka_server import free_ports
from tests.support.model_service import until

pytestmark = pytest.mark.system


def test_a_model_service_that_dies_in_the_middle_of_an_answer(browser: Browser, home: Path) -> None:
    """The page says so, the history has the error, the desk goes on, and with the service answers come back."""
    (port,) = free_ports(1)
    service = start_service(home, home / "store", port, halting=True)
    try:
        where = ("--service", f"http://127.0.0.1:{port}")
        with (
            desk_server(home, home / "store", *where, state=home / "state-of-service") as url,
            window(browser, url) as opened,
            httpx.Client(base_url=f"{url}/api/v1", timeout=WAIT / 1000) as client,
        ):
            page = opened.page
            page.set_default_timeout(WAIT)
            go(page, "ask", "Ask")
            page.get_by_label("Question").fill("What colour was the dog at the door?")
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.locator(".answer-text")).to_have_text(BEGUN)
            expect(page.locator("figure.keyframe").first).to_be_visible()
            service.kill()
            service.wait()
            expect(page.get_by_role("alert")).to_contain_text(f"http://127.0.0.1:{port}")
            expect(page.locator("figure.keyframe").first).to_be_visible()  # what was found stays
            until(lambda: client.get("/questions").json()["items"][0]["state"] == "failed")
            failed = client.get("/questions").json()["items"][0]
            assert failed["error"]["code"] == "service_unavailable"
            assert failed["answer"] is None
            refused = client.post("/search", json={"text": "a word that was not asked yet"})
            assert (refused.status_code, refused.json()["code"]) == (503, "service_unavailable")
            go(page, "streams", "Streams")
            expect(page.get_by_role("article", name="camera-1")).to_be_visible()

            service = start_service(home, home / "store", port, halting=False)
            go(page, "ask", "Ask")
            page.get_by_label("Question").fill("What colour was the dog at the door?")
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.get_by_text("keyframes of", exact=False).first).to_be_visible()
            expect(page.locator(".answer-text")).not_to_be_empty()
            expect(page.get_by_role("alert")).to_have_count(0)
    finally:
        service.kill()
        service.wait()
