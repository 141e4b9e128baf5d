"""The guard of the desk: default deny, names of hosts, forged requests, sessions, tokens, headers, bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import UsageError
from pipeline.access.sessions import csrf_token
from pipeline.http.hosts import host_name
from pipeline.web.address import DeskAddress
from pipeline.web.guard import PUBLIC_PATHS, is_public_path, session_cookie
from tests.support.desk_access import Guarded, guarded, with_users

FILES = (Path("cert.pem"), Path("key.pem"))
LAN = DeskAddress(host="0.0.0.0", allowed_hosts=("desk.example",), behind_proxy=True)
COOKIE = session_cookie(secure=False, port=8080)


def ask(opened: Guarded, method: str, path: str, base: str = "http://localhost:8080", **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with opened.client(base) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def logged_in(opened: Guarded, name: str = "ann") -> tuple[str, dict[str, str]]:
    """The id of a new session, and the headers of its requests."""
    chosen = opened.authentication.sessions.begin(name, "session")
    return chosen, {"Cookie": f"{COOKIE}={chosen}", "X-CSRF-Token": csrf_token(chosen)}


# ---- who may reach the desk ----------------------------------------------------------------------------------------


def test_without_users_the_local_user_may_do_everything(tmp_path: Path) -> None:
    opened = guarded(tmp_path)
    reply = ask(opened, "GET", "/api/v1/streams")
    assert reply.json() == {"name": "local", "bytes": 0, "origin": "127.0.0.1"}
    assert opened.seen[0]["caller"].origin == "127.0.0.1"


def test_the_first_user_ends_access_without_a_password_at_once(tmp_path: Path) -> None:
    opened = with_users(tmp_path)
    assert ask(opened, "GET", "/api/v1/streams").status_code == 401
    assert not opened.seen


@pytest.mark.parametrize("address", [DeskAddress(host="0.0.0.0", tls=FILES), DeskAddress(behind_proxy=True)])
def test_a_desk_that_others_reach_needs_users(tmp_path: Path, address: DeskAddress) -> None:
    with pytest.raises(UsageError, match="sightline users add"):
        address.check(users=False)
    address.check(users=True)
    # Even if the last user is removed while it runs.
    assert ask(guarded(tmp_path, address=address), "GET", "/api/v1/streams").status_code == 401


def test_passwords_do_not_cross_a_network_unencrypted() -> None:
    DeskAddress().check(users=True)
    DeskAddress(host="10.0.0.5", tls=FILES).check(users=True)
    with pytest.raises(UsageError, match="--tls-cert"):
        DeskAddress(host="10.0.0.5").check(users=True)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.5", "", "evil.example:8080"])
def test_a_name_that_is_rebound_to_loopback_does_not_reach_the_desk(tmp_path: Path, host: str) -> None:
    opened = guarded(tmp_path)
    for path in ("/", "/healthz", "/api/v1/streams"):
        assert ask(opened, "GET", path, headers={"Host": host}).status_code == 421
    assert not opened.seen


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080", "[::1]"])
def test_loopback_names_reach_the_desk(tmp_path: Path, host: str) -> None:
    assert ask(guarded(tmp_path), "GET", "/api/v1/streams", headers={"Host": host}).status_code == 200


def test_allowed_names_and_addresses_reach_a_desk_on_the_network(tmp_path: Path) -> None:
    opened = with_users(tmp_path, address=LAN)
    for host, status in (("desk.example", 200), ("DESK.example.:443", 200), ("10.0.0.5", 200), ("evil.example", 421)):
        assert ask(opened, "GET", "/healthz", headers={"Host": host}).status_code == status


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40))
def test_only_loopback_names_are_answered_by_a_private_desk(text: str) -> None:
    name = host_name(text.encode("latin-1"))
    if DeskAddress().answers_to(name):
        assert name.strip("[]").lower() in ("localhost", "::1") or name.strip("[]").startswith(("127.", "0", ":", "::"))


# ---- default deny ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return with_users(tmp_path_factory.mktemp("closed"))


@settings(deadline=None)  # other processes use the cores
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    st.sampled_from(["/", "/assets", "/api/v1/session", "/healthz", "/api/v1/streams"]),
    st.text("/.%2ef;?# s", max_size=6),
)
def test_every_other_path_needs_a_caller(closed: Guarded, method: str, start: str, end: str) -> None:
    closed.seen.clear()
    status = ask(closed, method, f"{start}{end}").status_code
    assert (status == 401) == (not closed.seen)
    assert all(is_public_path(seen["path"]) for seen in closed.seen)


def test_the_public_paths_are_the_page_the_health_check_and_the_log_in() -> None:
    plain = {"/", "/favicon.ico", "/healthz", "/api/v1/healthz"}
    assert all(path in plain or path.startswith("/api/v1/session") for path in PUBLIC_PATHS)
    for path in ("/api/v1/streams", "/api/v1/sessions", "/assets", "/openapi.json", "/api", "//", "/healthz/"):
        assert not is_public_path(path)


def test_a_reply_to_a_stranger_does_not_say_whether_the_path_exists(tmp_path: Path) -> None:
    opened = with_users(tmp_path)
    replies = [ask(opened, "GET", path, headers={"x-request-id": "r"}) for path in ("/api/v1/streams", "/api/v1/x")]
    assert replies[0].json() == replies[1].json()
    assert replies[0].headers["content-type"] == "application/problem+json"
    assert replies[0].json()["request_id"] == "r"


# ---- sessions and forged requests ------------------------------------------------------------------------------------


def test_a_session_is_a_caller_until_it_ends(tmp_path: Path) -> None:
    opened = with_users(tmp_path)
    chosen, headers = logged_in(opened, "eve")
    assert ask(opened, "GET", "/api/v1/streams", headers=headers).json()["name"] == "eve"
    opened.authentication.sessions.end(chosen)
    assert ask(opened, "GET", "/api/v1/streams", headers=headers).status_code == 401


def test_an_unsafe_request_with_a_cookie_needs_the_token_of_its_session(tmp_path: Path) -> None:
    opened = with_users(tmp_path)
    _, headers = logged_in(opened)
    _, other = logged_in(opened)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        cookie = {"Cookie": headers["Cookie"]}
        for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": other["X-CSRF-Token"]}):
            assert ask(opened, method, "/api/v1/holds", headers={**cookie, **wrong}).status_code == 403
        assert ask(opened, method, "/api/v1/holds", headers=headers).status_code == 200
    assert ask(opened, "DELETE", "/api/v1/session", headers={"Cookie": headers["Cookie"]}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9999", "https://localhost:8080", ""]
)
def test_a_page_of_another_site_changes_nothing(tmp_path: Path, origin: str) -> None:
    for opened, headers in (
        (guarded(tmp_path / "a"), {}),
        ((known := with_users(tmp_path / "b")), logged_in(known)[1]),
    ):
        for path in ("/api/v1/holds", "/api/v1/session"):
            reply = ask(opened, "POST", path, headers={**headers, "Origin": origin})
            assert reply.status_code == 403, reply.text
        assert ask(opened, "POST", "/api/v1/holds", headers={**headers, "Origin": "http://localhost:8080"}).is_success


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_embeds_nothing(tmp_path: Path, site: str) -> None:
    opened = guarded(tmp_path)
    for mode in ("no-cors", "cors", "websocket"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        assert ask(opened, "GET", "/api/v1/thumbnail", headers=headers).status_code == 403
    assert ask(opened, "GET", "/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).is_success
    assert ask(opened, "POST", "/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 403


def test_the_cookie_of_a_desk_with_tls_is_bound_to_its_host(tmp_path: Path) -> None:
    assert session_cookie(secure=True, port=443) == "__Host-sightline"
    opened = with_users(tmp_path, address=LAN)
    chosen, _ = logged_in(opened)
    base = "https://desk.example"
    for name, status in (("__Host-sightline", 200), ("sightline-443", 401), ("sightline", 401)):
        reply = ask(opened, "GET", "/api/v1/streams", base, headers={"Cookie": f"{name}={chosen}"})
        assert reply.status_code == status


# ---- tokens --------------------------------------------------------------------------------------------------------------


def test_a_token_needs_no_csrf_token_and_is_not_replaced_by_a_cookie(tmp_path: Path) -> None:
    opened = with_users(tmp_path)
    _, headers = logged_in(opened)
    _, text = opened.authentication.tokens.make("eve", "script", ["view"], 1)
    bearer = {"Authorization": f"Bearer {text}"}
    assert ask(opened, "POST", "/api/v1/search", headers=bearer).json()["name"] == "eve"
    assert ask(opened, "POST", "/api/v1/search", headers={**headers, **bearer}).json()["name"] == "eve"
    for wrong in ("Bearer sl_x", f"Basic {text}", "Bearer", f"Bearer {text}x", ""):
        assert ask(opened, "GET", "/api/v1/streams", headers={**headers, "Authorization": wrong}).status_code == 401


# ---- replies and bodies --------------------------------------------------------------------------------------------------


def test_every_reply_has_protecting_headers(tmp_path: Path) -> None:
    opened = with_users(tmp_path)
    for path, cache in (("/", "private, no-store"), ("/api/v1/x", "private, no-store"), ("/assets/a.js", "no-cache")):
        headers = ask(opened, "GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == cache
        assert headers["x-request-id"]
        assert "strict-transport-security" not in headers
    secure = ask(with_users(tmp_path / "s", address=LAN), "GET", "/", "https://desk.example").headers
    assert secure["strict-transport-security"].startswith("max-age=")


def test_the_address_behind_a_proxy_is_the_one_that_the_proxy_saw(tmp_path: Path) -> None:
    opened = with_users(tmp_path / "a", address=LAN)
    headers = {"X-Forwarded-For": "1.1.1.1, 10.0.0.7"}
    assert ask(opened, "GET", "/", "https://desk.example", headers=headers).json()["origin"] == "10.0.0.7"
    assert ask(guarded(tmp_path / "b"), "GET", "/", headers=headers).json()["origin"] == "127.0.0.1"


def test_bodies_are_bounded_by_path_and_before_a_log_in(tmp_path: Path) -> None:
    opened = guarded(tmp_path, max_body_bytes=lambda path: 200_000 if path == "/api/v1/pictures" else 1_000)
    assert ask(opened, "POST", "/api/v1/pictures", content=b"x" * 100_000).json()["bytes"] == 100_000
    assert ask(opened, "POST", "/api/v1/search", content=b"x" * 1_001).status_code == 413
    assert ask(opened, "POST", "/api/v1/session", content=b"x" * 17_000).status_code == 413


def test_a_body_that_does_not_arrive_is_not_waited_for(tmp_path: Path) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(600)

    reply = ask(guarded(tmp_path, body_seconds=0.2), "POST", "/api/v1/search", content=slowly())
    assert reply.status_code == 408
