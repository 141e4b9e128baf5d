"""Routes about log-ins, users, tokens and the audit trail, through the complete application."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Mount

from index.errors import StoreFull
from pipeline.access.caller import Grant
from pipeline.access.oidc import OidcLogin
from pipeline.access.oidc_settings import OidcSettings
from pipeline.access.roles import Action, Role, allows
from pipeline.access.throttle import LoginThrottle
from pipeline.audit.log import AuditTable
from pipeline.audit.verification import chain_problems, read_export, verify_trails
from pipeline.web.guard import is_public_path
from pipeline.web.routes.guarded import action_of, is_public
from tests.support.desk_access import PASSWORD
from tests.support.desk_app import API, DeskApp, desk_app
from tests.support.oidc_provider import authorize, provider

NEW = "a longer password"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[DeskApp]:
    made = desk_app(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskApp]:
    """A desk that no test changes."""
    made = desk_app(tmp_path_factory.mktemp("shared"))
    yield made
    made.close()


def log_in(opened: DeskApp, name: str = "ann", password: str = PASSWORD, **options: Any) -> Any:
    return opened.ask("POST", f"{API}/session", json={"name": name, "password": password}, **options)


# ---- the table of routes -------------------------------------------------------------------------------------------


def routes_of(opened: DeskApp) -> list[tuple[str, str, Action | None]]:
    """Method, path and action of every route; parameters of the path have some value."""
    found = list[tuple[str, str, Action | None]]()
    for route in opened.app.app.routes:
        if isinstance(route, Mount):
            found.append(("GET", f"{route.path}/x.js", None))
            continue
        path = route.path.replace("{name}", "eve").replace("{token}", "sl_x")
        while "{" in path:
            path = path.replace(path[path.index("{") : path.index("}") + 1], "x")
        found += [(method, path, action_of(route)) for method in route.methods - {"HEAD"}]
    return found


def test_every_route_is_refused_without_a_caller(shared: DeskApp) -> None:
    table = routes_of(shared)
    assert len(table) > 15
    before = len(shared.recorded())
    for method, path, action in table:
        if action is None:
            assert is_public_path(path), path
        else:
            for headers in ({}, {"Authorization": "Bearer sl_abcdefgh_x"}, {"Cookie": "sightline-8080=x"}):
                assert shared.ask(method, path, headers=headers).status_code == 401, (method, path)
    assert len(shared.recorded()) == before


def test_public_routes_are_the_page_the_health_check_and_the_log_in(shared: DeskApp) -> None:
    public = {getattr(route, "path", "") for route in shared.app.app.routes if is_public(route)}
    assert public == {
        "/",
        "/assets",
        "/healthz",
        f"{API}/healthz",
        f"{API}/session",
        f"{API}/session/oidc",
        f"{API}/session/oidc/callback",
    }


def test_every_route_is_refused_to_roles_without_its_action(shared: DeskApp) -> None:
    """A token with all scopes but one, and the role of a viewer."""
    viewer = shared.session("eve")
    for method, path, action in routes_of(shared):
        if action is None:
            continue
        others = shared.token("ann", *(set(Action) - {action}))
        assert shared.ask(method, path, headers=others).status_code == 403, (method, path, action)
        if not allows(Role.VIEWER, action):
            assert shared.ask(method, path, headers=viewer).status_code == 403, (method, path, action)


def test_an_administrator_of_some_streams_manages_no_users(opened: DeskApp) -> None:
    opened.authentication.users.grant("eve", Grant("gate-*", Role.ADMIN))
    headers = opened.session("eve")
    body = {"name": "mallory", "password": NEW, "grants": [{"pattern": "*", "role": "admin"}]}
    for method, path, content in (
        ("GET", "/users", None),
        ("POST", "/users", body),
        ("PATCH", "/users/eve", {"grants": body["grants"]}),
        ("DELETE", "/users/ann", None),
        ("GET", "/users/ann/tokens", None),
        ("POST", "/users/ann/tokens", {"name": "x", "scopes": ["users"]}),
        ("GET", "/audit", None),
        ("GET", "/audit/export", None),
    ):
        reply = opened.ask(method, f"{API}{path}", headers=headers, json=content)
        assert reply.status_code == 403, (method, path, reply.text)
    assert [user.name for user in opened.authentication.users.all()] == ["ann", "eve"]


# ---- sessions ------------------------------------------------------------------------------------------------------------


def test_a_log_in_sets_the_cookie_of_a_new_session(opened: DeskApp) -> None:
    reply = log_in(opened)
    assert reply.status_code == 204
    cookie = reply.headers["set-cookie"]
    name, _, rest = cookie.partition("=")
    assert name == "sightline-8080"
    assert {part.strip().lower() for part in rest.split(";")[1:]} >= {"httponly", "path=/", "samesite=strict"}
    assert "secure" not in rest.lower()
    headers = opened.headers_of(rest.partition(";")[0])
    session = opened.ask("GET", f"{API}/session", headers=headers).json()
    assert (session["name"], session["role"], session["via"]) == ("ann", "admin", "session")
    assert session["csrf"] == headers["X-CSRF-Token"]
    (record,) = opened.recorded("login")
    assert (record.user, record.outcome, record.origin) == ("ann", "done", "127.0.0.1")


def test_a_session_that_the_browser_brings_is_not_taken_over(opened: DeskApp) -> None:
    """Session fixation: an id that somebody else has put into the browser never becomes the id of a log-in."""
    foreign = "x" * 43
    reply = log_in(opened, headers={"Cookie": f"sightline-8080={foreign}"})
    assert foreign not in reply.headers["set-cookie"]
    assert opened.ask("GET", f"{API}/streams", headers=opened.headers_of(foreign)).status_code == 401
    known = opened.authentication.sessions.begin("eve", "session")
    log_in(opened, headers={"Cookie": f"sightline-8080={known}"})
    assert opened.ask("GET", f"{API}/streams", headers=opened.headers_of(known)).status_code == 401


def test_a_stranger_learns_only_how_to_log_in(shared: DeskApp) -> None:
    session = shared.ask("GET", f"{API}/session").json()
    assert session == {
        **dict.fromkeys(("name", "role", "via", "csrf", "model")),
        "users_required": True,
        "oidc": False,
        "timezone": "UTC",
        "actions": [],
        "version": "",
        "profile": "",
        "notices": [],
    }


def test_a_log_out_ends_the_session(opened: DeskApp) -> None:
    headers = opened.session("eve")
    reply = opened.ask("DELETE", f"{API}/session", headers=headers)
    assert reply.status_code == 204
    assert 'sightline-8080=""' in reply.headers["set-cookie"]
    assert reply.headers["clear-site-data"] == '"cache"'
    assert opened.ask("GET", f"{API}/streams", headers=headers).status_code == 401
    assert [record.user for record in opened.recorded("logout")] == ["eve"]
    assert opened.ask("DELETE", f"{API}/session").status_code == 204


def test_a_wrong_password_and_an_unknown_name_look_the_same(opened: DeskApp) -> None:
    replies = [log_in(opened, name, "not the password", headers={"x-request-id": "r"}) for name in ("ann", "nobody")]
    assert [reply.status_code for reply in replies] == [401, 401]
    assert replies[0].json() == replies[1].json()
    assert "set-cookie" not in replies[0].headers
    assert [(record.user, record.outcome) for record in opened.recorded("login")] == [
        ("ann", "refused"),
        ("unknown", "refused"),
    ]


def test_log_ins_are_throttled(opened: DeskApp) -> None:
    opened.authentication.throttle = LoginThrottle(by_pair=2)
    replies = [log_in(opened, password="not the password") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [401, 401, 429]
    assert 0 < int(replies[2].headers["retry-after"]) <= 300
    assert log_in(opened).status_code == 429, "the right password neither"
    assert log_in(opened, "eve").status_code == 204


def test_the_own_password_is_changed_with_the_present_one(opened: DeskApp) -> None:
    headers, other = opened.session("eve"), opened.session("eve")
    path = f"{API}/session/password"
    wrong = {"password": "not the password", "new_password": NEW}
    assert opened.ask("POST", path, headers=headers, json=wrong).status_code == 401
    right = {"password": PASSWORD, "new_password": NEW}
    assert opened.ask("POST", path, headers=opened.token("eve", "view"), json=right).status_code == 403
    reply = opened.ask("POST", path, headers=headers, json=right)
    assert reply.status_code == 204
    for old in (headers, other):
        assert opened.ask("GET", f"{API}/streams", headers=old).status_code == 401
    fresh = opened.headers_of(reply.headers["set-cookie"].partition("=")[2].partition(";")[0])
    assert opened.ask("GET", f"{API}/streams", headers=fresh).status_code == 200
    assert log_in(opened, "eve").status_code == 401
    assert log_in(opened, "eve", NEW).status_code == 204


def test_without_users_the_page_needs_no_log_in(tmp_path: Path) -> None:
    made = desk_app(tmp_path, users=False)
    session = made.ask("GET", f"{API}/session").json()
    assert (session["name"], session["role"], session["users_required"]) == ("local", "admin", False)
    assert log_in(made).status_code == 422
    body = {"name": "bob", "password": NEW, "grants": [{"role": "viewer"}]}
    assert made.ask("POST", f"{API}/users", json=body).status_code == 422, "the first user manages the users"
    body["grants"] = [{"role": "admin"}]
    assert made.ask("POST", f"{API}/users", json=body).status_code == 201
    assert made.ask("GET", f"{API}/users").status_code == 401
    made.close()


# ---- users and tokens ------------------------------------------------------------------------------------------------------


def test_users_are_added_changed_and_removed(opened: DeskApp) -> None:
    headers = opened.session("ann")
    body = {"name": "bob", "password": NEW, "grants": [{"pattern": "gate-*", "role": "operator"}]}
    reply = opened.ask("POST", f"{API}/users", headers=headers, json=body)
    assert reply.status_code == 201
    assert reply.json()["grants"] == body["grants"]
    assert NEW not in reply.text
    assert opened.ask("POST", f"{API}/users", headers=headers, json=body).status_code == 422
    bob = opened.session("bob")
    change = {"grants": [{"pattern": "yard", "role": "viewer"}]}
    assert opened.ask("PATCH", f"{API}/users/bob", headers=headers, json=change).json()["grants"] == change["grants"]
    listed = opened.ask("GET", f"{API}/streams", headers=bob).json()["items"]
    assert [stream["stream_id"] for stream in listed] == ["yard"], "at once, in a session that began before"
    assert opened.ask("PATCH", f"{API}/users/bob", headers=headers, json={"disabled": True}).json()["disabled"]
    assert opened.ask("GET", f"{API}/streams", headers=bob).status_code == 401
    assert opened.ask("DELETE", f"{API}/users/bob", headers=headers).status_code == 204
    names = [user["name"] for user in opened.ask("GET", f"{API}/users", headers=headers).json()["items"]]
    assert names == ["ann", "eve"]
    assert opened.ask("DELETE", f"{API}/users/ann", headers=headers).status_code == 422
    done = [record.action for record in opened.recorded() if record.action.startswith("users.")]
    assert done == ["users.add", "users.change", "users.change", "users.remove"]
    assert not [record for record in opened.recorded() if NEW in repr(record)]


def test_a_change_that_cannot_be_recorded_is_not_made(opened: DeskApp, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = opened.session("ann")

    def full(*_: Any) -> Any:
        raise StoreFull("no space left")

    monkeypatch.setattr(AuditTable, "append", full)
    body = {"name": "bob", "password": NEW, "grants": []}
    assert opened.ask("POST", f"{API}/users", headers=headers, json=body).status_code == 507
    assert opened.ask("DELETE", f"{API}/users/eve", headers=headers).status_code == 507
    assert opened.ask(
        "POST", f"{API}/users/eve/tokens", headers=headers, json={"name": "x", "scopes": ["view"]}
    ).is_error
    assert log_in(opened, "eve").status_code == 507
    monkeypatch.undo()
    assert [user.name for user in opened.authentication.users.all()] == ["ann", "eve"]
    assert opened.authentication.tokens.of_user("eve") == []


def test_a_token_is_shown_once_and_works_until_it_is_revoked(opened: DeskApp) -> None:
    headers = opened.session("eve")
    path = f"{API}/users/eve/tokens"
    made = opened.ask("POST", path, headers=headers, json={"name": "script", "scopes": ["view"], "expires_days": 1})
    assert made.status_code == 201
    text = made.json()["token"]
    listed = opened.ask("GET", path, headers=headers)
    assert text not in listed.text
    assert [token["id"] for token in listed.json()["items"]] == [made.json()["id"]]
    bearer = {"Authorization": f"Bearer {text}"}
    assert opened.ask("GET", f"{API}/streams", headers=bearer).status_code == 200
    assert opened.ask("GET", path, headers=bearer).status_code == 403, "a token does not manage tokens"
    assert opened.ask("GET", f"{API}/users/ann/tokens", headers=headers).status_code == 403
    assert opened.ask("DELETE", f"{path}/{made.json()['id']}", headers=headers).status_code == 204
    assert opened.ask("GET", f"{API}/streams", headers=bearer).status_code == 401
    assert [record.action for record in opened.recorded() if "tokens" in record.action] == [
        "tokens.make",
        "tokens.revoke",
    ]
    assert not [record for record in opened.recorded() if text in repr(record)]


def test_a_token_makes_no_token_with_more_scopes(opened: DeskApp) -> None:
    headers = opened.token("ann", "users", "view")
    path = f"{API}/users/ann/tokens"
    assert opened.ask("POST", path, headers=headers, json={"name": "x", "scopes": ["audit"]}).status_code == 403
    assert opened.ask("POST", path, headers=headers, json={"name": "x", "scopes": ["view"]}).status_code == 201


# ---- what two users see ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(["gate-1", "gate-*", "yard", "*", "GATE-1", "gate", "gate-?", "[gy]*", "g*2"]), max_size=3
    ),
    st.sampled_from(["gate-1", "gate-2", "yard", "nothing"]),
)
def test_a_stream_without_a_grant_does_not_exist(shared: DeskApp, patterns: list[str], asked: str) -> None:
    """eve sees what her grants match; for all else the reply is that for a stream that nobody has."""
    shared.authentication.users.set_grants("eve", [Grant(pattern, Role.VIEWER) for pattern in patterns])
    headers = {**shared.session("eve"), "x-request-id": "r"}
    caller = shared.authentication.of_session(headers["Cookie"].partition("=")[2], "")
    assert caller is not None
    seen = caller.visible(["gate-1", "gate-2", "yard"])
    reply = shared.ask("GET", f"{API}/streams", headers=headers)
    if not patterns:
        assert reply.status_code == 403
        return
    listed = reply.json()
    assert [stream["stream_id"] for stream in listed["items"]] == seen
    reply = shared.ask("GET", f"{API}/streams/coverage", headers=headers, params={"stream": asked})
    unknown = shared.ask("GET", f"{API}/streams/coverage", headers=headers, params={"stream": "nobody-has-it"})
    assert unknown.status_code == 404
    assert (reply.status_code == 200) == (asked in seen)
    if asked not in seen:
        assert reply.json()["detail"].replace(asked, "nobody-has-it") == unknown.json()["detail"] or seen
        assert not [name for name in {"gate-1", "gate-2", "yard"} - {*seen, asked} if name in reply.text]


# ---- the audit trail -------------------------------------------------------------------------------------------------------


def test_the_trail_is_read_in_pages_and_exported(opened: DeskApp, tmp_path: Path) -> None:
    headers = opened.session("ann")
    for _ in range(3):
        log_in(opened, "eve", "not the password")
    opened.recorded()
    first = opened.ask("GET", f"{API}/audit", headers=headers, params={"limit": 2, "action": "login"}).json()
    assert [record["seq"] for record in first["items"]] == [3, 2]
    rest = opened.ask(
        "GET", f"{API}/audit", headers=headers, params={"limit": 2, "action": "login", "cursor": first["next"]}
    ).json()
    assert ([record["seq"] for record in rest["items"]], rest["next"]) == ([1], None)
    assert opened.ask("GET", f"{API}/audit", headers=headers, params={"cursor": "x"}).status_code == 422
    reply = opened.ask("GET", f"{API}/audit/export", headers=headers)
    assert reply.headers["content-type"] == "application/vnd.apache.parquet"
    (tmp_path / "trail.parquet").write_bytes(reply.content)
    exported = list(read_export(tmp_path / "trail.parquet"))
    assert not chain_problems(exported)
    assert exported[-1].action == "audit.export", "the export is in its own file"
    mine = opened.ask("GET", f"{API}/audit/export", headers=headers, params={"user": "eve"})
    assert set(pq.read_table(io.BytesIO(mine.content))["user"].to_pylist()) == {"eve"}
    assert not list((tmp_path / "state").glob("audit-*.parquet"))
    assert not verify_trails(f"{tmp_path}/store", tmp_path / "state")


# ---- OpenID Connect --------------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_a_user_of_a_provider_logs_in(tmp_path: Path) -> None:
    users = [{"sub": "u1", "preferred_username": "zoe", "groups": ["guards"]}, {"sub": "u2", "groups": []}]
    (tmp_path / "secret").write_text("s3cret")
    with provider(users) as issuer:
        login = OidcLogin(
            OidcSettings(
                issuer=issuer,
                client_id="desk",
                client_secret_file=tmp_path / "secret",
                url="http://localhost:8080",
                groups={"guards": ("viewer:gate-*",)},
            )
        )
        made = desk_app(tmp_path, users=False, oidc=login)
        assert made.ask("GET", f"{API}/streams").status_code == 401
        assert made.ask("GET", f"{API}/session").json()["oidc"]

        def through(sub: str, *, cookie: bool = True) -> Any:
            """What the desk answers when the provider has sent the browser of a user back."""
            start = made.ask("GET", f"{API}/session/oidc")
            assert start.status_code == 303
            assert "samesite=lax" in start.headers["set-cookie"].lower()
            came = authorize(start.headers["location"], sub)
            binding = start.headers["set-cookie"].partition(";")[0]
            headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
            if cookie:
                headers["Cookie"] = binding
            return made.ask("GET", f"{API}/session/oidc/callback", params=came, headers=headers)

        back = through("u1")
        assert (back.status_code, urlsplit(back.headers["location"]).path) == (303, "/")
        session = next(value for value in back.headers.get_list("set-cookie") if value.startswith("sightline-8080="))
        headers = made.headers_of(session.partition("=")[2].partition(";")[0])
        listed = made.ask("GET", f"{API}/streams", headers=headers).json()["items"]
        assert [stream["stream_id"] for stream in listed] == ["gate-1", "gate-2"]
        for failed in (through("u2"), through("u1", cookie=False)):
            assert failed.headers["location"] == "/?error=login"
            assert "sightline-8080=" not in failed.headers["set-cookie"]
        assert [(record.user, record.via, record.outcome) for record in made.recorded("login")] == [
            ("oidc:zoe", "oidc", "done"),
            ("oidc:u2", "oidc", "refused"),
            ("unknown", "oidc", "refused"),
        ]
        made.close()
