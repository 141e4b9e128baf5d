"""Log-in through an OpenID Connect provider: a real one in a process, and a hostile one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import RSAKey

from index.errors import LoginRequired, ServiceUnavailable, UsageError
from ingest.sources.url_policy import UrlPolicy
from pipeline.access.authentication import Authentication
from pipeline.access.caller import Grant
from pipeline.access.oidc import OidcLogin, OidcUser
from pipeline.access.oidc_settings import OidcSettings
from pipeline.access.roles import Role
from tests.support.oidc_provider import authorize, provider

USERS = [
    {"sub": "u1", "preferred_username": "Ann", "groups": ["guards", "everybody"]},
    {"sub": "u2", "preferred_username": "ann", "groups": ["guards"]},
    {"sub": "u3", "preferred_username": "Ęwa <script>", "groups": ["nothing"]},
]
GROUPS = {"guards": ("viewer:*", "operator:gate-*"), "everybody": ("viewer:gate-*",), "chiefs": ("admin",)}


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with provider(USERS) as url:
        yield url


@pytest.fixture
def login(issuer: str, tmp_path: Path) -> OidcLogin:
    (tmp_path / "secret").write_text("s3cret\n")
    return login_at(issuer, client_secret_file=tmp_path / "secret")


def login_at(issuer: str, **more: Any) -> OidcLogin:
    settings = OidcSettings(issuer=issuer, client_id="desk", url="http://localhost:8080", groups=GROUPS)
    return OidcLogin(settings.model_copy(update=more))


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


# ---- a real provider ---------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_a_user_logs_in_and_has_the_roles_of_its_groups(login: OidcLogin, issuer: str, tmp_path: Path) -> None:
    start = login.begin()
    sent = query_of(start.url)
    assert (sent["response_type"], sent["code_challenge_method"]) == ("code", "S256")
    assert sent["redirect_uri"] == "http://localhost:8080/api/v1/session/oidc/callback"
    assert len(sent["state"]) >= 43
    assert len(sent["nonce"]) >= 43
    user = login.finish(authorize(start.url, "u1"), start.binding)
    assert user == OidcUser(issuer, "u1", "oidc:ann", ("guards", "everybody"))
    assert login.grants(user) == [Grant("*", Role.VIEWER), Grant("gate-*", Role.OPERATOR)]
    desk = Authentication(tmp_path / "state", oidc=login)
    caller = desk.of_session(desk.enter(user, login.grants(user)), "10.0.0.1")
    assert caller is not None
    assert (caller.name, caller.via) == ("oidc:ann", "oidc")
    # The groups of the next log-in replace those of the last one.
    again = desk.of_session(desk.enter(user, [Grant("yard", Role.VIEWER)]), "10.0.0.1")
    assert again is not None
    assert again.grants == (Grant("yard", Role.VIEWER),)
    with pytest.raises(UsageError, match="another user of the provider has this name"):
        desk.enter(OidcUser(issuer, "u2", "oidc:ann", ()), [])
    with pytest.raises(UsageError, match="groups of the provider"):
        desk.users.grant("oidc:ann", Grant("*", Role.ADMIN))
    desk.users.disable("oidc:ann", True)
    with pytest.raises(UsageError, match="disabled"):
        desk.enter(user, [])


@pytest.mark.system
def test_a_user_without_a_group_is_refused_and_strange_names_are_not_shown(login: OidcLogin) -> None:
    start = login.begin()
    user = login.finish(authorize(start.url, "u3"), start.binding)
    assert user.name == "oidc:u3"
    with pytest.raises(LoginRequired, match="none of the user's groups"):
        login.grants(user)


@pytest.mark.system
def test_a_log_in_counts_once_and_in_the_browser_that_began_it(login: OidcLogin) -> None:
    start, other = login.begin(), login.begin()
    came = authorize(start.url, "u1")
    with pytest.raises(LoginRequired, match="not begun in this browser"):
        login.finish(came, other.binding)
    with pytest.raises(LoginRequired, match="not begun in this browser"):
        login.finish(came, start.binding)  # the state was used up, whoever used it
    mine = authorize(other.url, "u1")
    with pytest.raises(LoginRequired, match="not begun"):
        login.finish({**mine, "state": "x"}, other.binding)
    assert login.finish(mine, other.binding).subject == "u1"
    with pytest.raises(LoginRequired, match="not begun"):
        login.finish(mine, other.binding)


@pytest.mark.system
def test_refusals_of_the_provider_are_reported(login: OidcLogin) -> None:
    start = login.begin()
    refused = {**authorize(start.url, None), "state": query_of(start.url)["state"]}  # this provider leaves it out
    with pytest.raises(LoginRequired, match="access_denied"):
        login.finish(refused, start.binding)
    start = login.begin()
    with pytest.raises(LoginRequired, match="invalid_grant"):
        login.finish({**authorize(start.url, "u1"), "code": "stolen"}, start.binding)


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        login_at("http://127.0.0.1:9").begin()


# ---- a hostile provider ------------------------------------------------------------------------------------------------


class Hostile:
    """A provider that a test changes."""

    def __init__(self) -> None:
        self.key, self.other = RSAKey.generate_key(2048), RSAKey.generate_key(2048)
        self.issuer = ""
        self.metadata: dict[str, Any] = {}
        self.claims: dict[str, Any] = {}
        self.sign: Callable[[dict[str, Any]], str] = lambda claims: jwt.encode({"alg": "RS256"}, claims, self.key)
        self.asked: list[str] = []
        self.body: bytes | None = None

    def reply(self, path: str) -> Any:
        """What the provider answers."""
        if path == "/.well-known/openid-configuration":
            names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            return {"issuer": self.issuer, **{name: f"{self.issuer}/{name}" for name in names}, **self.metadata}
        if path == "/token_endpoint":
            return {"access_token": "a", "token_type": "Bearer", "id_token": self.sign(self.claims)}
        if path == "/jwks_uri":
            return {"keys": [self.key.as_dict(private=False)]}
        return None


@pytest.fixture(scope="module")
def served() -> Iterator[Hostile]:
    hostile = Hostile()
    with _serve(hostile) as url:
        hostile.issuer = url
        yield hostile


@contextmanager
def _serve(hostile: Hostile) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        """Answers with what the test says."""

        def do_GET(self) -> None:
            """Answer."""
            length = int(self.headers.get("Content-Length", "0"))
            hostile.asked.append(f"{self.path} {self.rfile.read(length).decode()}")
            reply = hostile.reply(self.path)
            self.send_response(200 if reply is not None else 302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode() if hostile.body is None else hostile.body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hostile(served: Hostile) -> Hostile:
    for name in ("metadata", "claims", "asked"):
        getattr(served, name).clear()
    served.sign, served.body = lambda claims: jwt.encode({"alg": "RS256"}, claims, served.key), None
    return served


def finish(hostile: Hostile, **changes: Any) -> OidcUser:
    """Log in; `changes` are made to the claims of the ID token, None removes one."""
    login = login_at(hostile.issuer)
    start = login.begin()
    sent = query_of(start.url)
    right = {
        "iss": hostile.issuer,
        "sub": "u1",
        "aud": "desk",
        "exp": time.time() + 300,
        "iat": time.time(),
        "nonce": sent["nonce"],
        "groups": ["guards"],
    }
    hostile.claims.update({name: value for name, value in {**right, **changes}.items() if value is not None})
    return login.finish({"state": sent["state"], "code": "c"}, start.binding)


def test_the_code_is_exchanged_with_the_verifier_of_its_challenge(hostile: Hostile) -> None:
    login = login_at(hostile.issuer)
    start = login.begin()
    sent = query_of(start.url)
    with pytest.raises(LoginRequired):
        login.finish({"state": sent["state"], "code": "c"}, start.binding)
    (exchanged,) = [asked for asked in hostile.asked if asked.startswith("/token_endpoint")]
    body = dict(parse_qsl(exchanged.partition(" ")[2]))
    assert create_s256_code_challenge(body["code_verifier"]) == sent["code_challenge"]
    assert (body["code"], body["client_id"], body["grant_type"]) == ("c", "desk", "authorization_code")


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"aud": "another client"},
        {"aud": ["desk", "another client"]},
        {"azp": "another client"},
        {"exp": 1},
        {"iat": 4_000_000_000},
        {"nonce": "replayed"},
        {"nonce": None},
        {"sub": None},
        {"sub": 7},
        {"exp": None},
        {"iss": None},
        {"aud": None},
    ],
)
def test_an_id_token_with_a_wrong_claim_is_refused(hostile: Hostile, changes: dict[str, Any]) -> None:
    with pytest.raises(LoginRequired):
        finish(hostile, **changes)


def test_an_id_token_as_it_must_be_is_accepted(hostile: Hostile) -> None:
    assert finish(hostile).groups == ("guards",)
    assert finish(hostile, aud=["desk"], azp="desk").subject == "u1"
    assert finish(hostile, groups="guards").groups == ("guards",)
    assert finish(hostile, groups=7).groups == ()


def test_a_signature_of_another_key_or_none_is_refused(hostile: Hostile) -> None:
    def unsigned(claims: dict[str, Any]) -> str:
        """A token that says it needs no signature."""
        parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
        return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), ""])

    public = hostile.key.as_pem(private=False)

    def confused(claims: dict[str, Any]) -> str:
        """A token that is signed with the public key as if it were a shared secret."""
        import base64

        parts = [
            base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in ({"alg": "HS256"}, claims)
        ]
        signature = hmac.new(public, ".".join(parts).encode(), hashlib.sha256).digest()
        return ".".join([*parts, base64.urlsafe_b64encode(signature).decode().rstrip("=")])

    for sign in (
        lambda claims: jwt.encode({"alg": "RS256"}, claims, hostile.other),
        unsigned,
        confused,
        lambda _: "x.y.z",
        lambda _: None,
    ):
        hostile.sign = sign  # type: ignore[assignment]
        with pytest.raises(LoginRequired):
            finish(hostile)


def test_what_the_provider_names_is_checked_as_redirects_are(hostile: Hostile) -> None:
    for address in ("http://169.254.169.254/latest", "file:///etc/passwd", "http://10.0.0.1/", "ftp://127.0.0.1/"):
        hostile.metadata["token_endpoint"] = address
        with pytest.raises(ServiceUnavailable):
            finish(hostile)


def test_another_issuer_in_the_metadata_is_refused(hostile: Hostile) -> None:
    hostile.metadata["issuer"] = "https://other.example"
    with pytest.raises(ServiceUnavailable, match="another OpenID Connect provider"):
        finish(hostile)


def test_redirects_are_not_followed_and_replies_are_bounded(hostile: Hostile) -> None:
    hostile.metadata["jwks_uri"] = f"{hostile.issuer}/moved"
    with pytest.raises(ServiceUnavailable, match="302"):
        finish(hostile)
    assert not [asked for asked in hostile.asked if "elsewhere" in asked]
    hostile.body = b"x" * (2**20 + 1)
    with pytest.raises(ServiceUnavailable, match="larger than allowed"):
        login_at(hostile.issuer).begin()


def test_a_provider_at_a_forbidden_address_is_not_asked(hostile: Hostile) -> None:
    settings = OidcSettings(issuer=hostile.issuer, client_id="desk", url="http://localhost", groups=GROUPS)
    with pytest.raises(ServiceUnavailable, match="127"):
        OidcLogin(settings, policy=UrlPolicy(schemes=frozenset({"http", "https"}))).begin()
    assert not hostile.asked


def test_log_ins_that_wait_are_bounded_and_expire(hostile: Hostile) -> None:
    now = [0.0]
    settings = OidcSettings(issuer=hostile.issuer, client_id="desk", url="http://localhost", groups=GROUPS)
    login = OidcLogin(settings, clock=lambda: now[0])
    first = login.begin()
    for _ in range(1_000):
        last = login.begin()
    with pytest.raises(LoginRequired, match="not begun"):
        login.finish({"state": query_of(first.url)["state"]}, first.binding)
    now[0] += 600
    with pytest.raises(LoginRequired, match="took too long"):
        login.finish({"state": query_of(last.url)["state"]}, last.binding)


@pytest.mark.parametrize(
    "changes", [{"issuer": ""}, {"client_id": ""}, {"url": ""}, {"groups": {}}, {"groups": {"g": ("root",)}}]
)
def test_settings_that_are_not_enough(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        login_at(**{"issuer": "http://127.0.0.1:9", **changes})


def test_a_desk_with_a_provider_needs_a_log_in_even_without_users(tmp_path: Path) -> None:
    assert Authentication(tmp_path, oidc=login_at("http://127.0.0.1:9")).required
