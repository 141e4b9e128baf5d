"""The desk of two users in Chromium: log-in, roles by stream, the audit trail, and a store that grows meanwhile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import desk_server, window
from tests.support.desk_page import WAIT, go, log_in, sightline
from tests.support.processes import environment

pytestmark = pytest.mark.system


def test_two_users_see_their_own_streams_and_actions(browser: Browser, home: Path) -> None:
    """The desk of two users: an administrator, who adds a viewer of one camera in the page."""
    store, state, password = home / "store-of-two", home / "state-of-two", "a long pass phrase 7"
    shutil.copytree(home / "store", store)  # it grows, which tests of the other desk would see
    command = [sys.executable, "-m", "sightline", "users", "add", "ada", "--grant", "admin", "--password-file", "-"]
    command += ["--state", str(state), "--store", str(store)]
    done = subprocess.run(command, input=password, env=environment(home), text=True, check=False)
    assert done.returncode == 0
    with desk_server(home, store, state=state) as url, window(browser, url) as admin:
        admin.page.set_default_timeout(WAIT)
        log_in(admin.page, "ada", "wrong wrong wrong")
        expect(admin.page.get_by_role("alert")).to_contain_text("wrong")
        log_in(admin.page, "ada", password)
        expect(admin.page.get_by_role("article", name="camera-2")).to_be_visible()
        go(admin.page, "admin", "Administration")
        admin.page.get_by_role("button", name="Add a user").click()
        box = admin.page.get_by_role("dialog")
        box.get_by_label("Name", exact=True).fill("grace")
        box.get_by_label("Password").fill(password)
        box.get_by_label(re.compile("Streams: a name")).fill("camera-1")
        box.get_by_role("button", name="Save").click()
        expect(admin.page.get_by_role("row", name=re.compile("grace"))).to_contain_text("viewer: camera-1")
        with window(browser, url) as viewer:
            viewer.page.set_default_timeout(WAIT)
            log_in(viewer.page, "grace", password)
            expect(viewer.page.get_by_role("article", name="camera-1")).to_be_visible()
            expect(viewer.page.get_by_role("article")).to_have_count(1)
            links = viewer.page.get_by_role("navigation", name="Views").get_by_role("link").all_inner_texts()
            assert links == ["Streams", "Search", "Moment"]
            go(viewer.page, "admin", "Your role does not include this page")
            viewer.page.goto("/#/moment?stream=camera-2&at=2024-05-01T09:12:00Z")
            expect(viewer.page.get_by_role("alert")).to_contain_text("camera-2")
            viewer.page.get_by_label("Account of grace").click()
            viewer.page.get_by_role("button", name="Log out").click()
            expect(viewer.page.get_by_role("heading", name="Log in")).to_be_visible()
        admin.page.goto("/#/admin?tab=audit")
        expect(admin.page.get_by_role("row", name=re.compile("users.add")).first).to_contain_text("grace")

        # A stream that arrives appears by itself.
        go(admin.page, "streams", "Streams")
        expect(admin.page.get_by_role("article", name="camera-1")).to_be_visible()
        expect(admin.page.get_by_role("article", name="late-camera")).to_have_count(0)
        sightline(home, "render", "--seed", 9, "--minutes", 0.1, "--cameras", 1, "--out", "more")
        (home / "more" / "camera-1.mp4").rename(home / "more" / "late-camera.mp4")
        sightline(home, "ingest", "more/late-camera.mp4", "--store", store, "--profile", "micro")
        expect(admin.page.get_by_role("article", name="late-camera")).to_be_visible()
