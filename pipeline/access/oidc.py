"""Log-in through an OpenID Connect provider: authorization code with PKCE, state and nonce.

    begin    the browser is sent to the provider; what must come back is kept here, and bound to the browser by a cookie
    finish   the code is exchanged for an ID token, whose signature and claims are checked; its groups decide the grants

The provider is named by the operator, so it may be in a private network. What it names itself (endpoints, keys) is
checked as redirects are: a public provider may name nothing private. Connections go to the address that was checked,
never through a redirect, and use TLS except to this machine itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from authlib.common.security import generate_token
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from index.errors import LoginRequired, ServiceUnavailable, SourceError, UsageError, mask_url, shown_text
from ingest.sources.url_policy import CheckedUrl, UrlPolicy, check_url
from pipeline.access.caller import Grant
from pipeline.access.oidc_settings import OidcSettings
from pipeline.access.users import parse_grant

__all__ = ["CALLBACK", "OidcLogin", "OidcStart", "OidcUser"]

CALLBACK = "/api/v1/session/oidc/callback"
"""Path to which the provider sends the browser back."""

_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
_WAITING = 1_000
_WAITING_SECONDS = 600.0
_METADATA_SECONDS = 600.0
_TIMEOUT = 10.0
_MAX_BYTES = 2**20
_LEEWAY_SECONDS = 60
_MAX_SECRET_BYTES = 4_096
_NAME = re.compile(r"[a-z0-9._@+-]{1,64}")


@dataclass(frozen=True, slots=True)
class OidcStart:
    """A log-in that has begun."""

    url: str
    """Address of the provider to send the browser to."""
    binding: str
    """Value of the cookie that binds the log-in to this browser."""


@dataclass(frozen=True, slots=True)
class OidcUser:
    """A user whom the provider has authenticated."""

    issuer: str
    """URL of the provider."""
    subject: str
    """Id of the user at the provider, which never changes."""
    name: str
    """Name to show, `oidc:…`."""
    groups: tuple[str, ...]
    """Groups of the user."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    binding: str  # SHA-256 of the cookie's value
    verifier: str
    nonce: str
    since: float


class OidcLogin:
    """Log-ins through one provider. Threads may share it.

    Args:
        settings: the provider and its groups.
        policy: which addresses the provider may have.
        clock: seconds that never go back.

    Raises:
        UsageError: a setting is missing or invalid, or the client's secret is not readable.
    """

    def __init__(
        self,
        settings: OidcSettings,
        *,
        policy: UrlPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name in ("issuer", "client_id", "url"):
            if not getattr(settings, name):
                raise UsageError(f"oidc.{name} must be set to log in through an OpenID Connect provider")
        if not settings.groups:
            raise UsageError(
                "oidc.groups must say what the groups of the provider may do; without, nobody could log in"
            )
        self.settings = settings
        self._grants = {group: [parse_grant(text) for text in texts] for group, texts in settings.groups.items()}
        self._policy = policy or UrlPolicy(schemes=frozenset({"http", "https"}), private=True)
        self._secret = _read_secret(settings)
        self._redirect = f"{settings.url.rstrip('/')}{CALLBACK}"
        self._clock, self._lock = clock, threading.Lock()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._metadata: tuple[float, dict[str, Any], UrlPolicy] | None = None

    def grants(self, user: OidcUser) -> list[Grant]:
        """What the groups of a user may do, the highest role of each pattern.

        Raises:
            LoginRequired: none of the groups may do anything.
        """
        found: dict[str, Grant] = {}
        for group in user.groups:
            for grant in self._grants.get(group, ()):
                held = found.get(grant.pattern)
                if held is None or _rank(grant) > _rank(held):
                    found[grant.pattern] = grant
        if not found:
            raise LoginRequired(f"{user.name}: none of the user's groups has access; ask an administrator")
        return list(found.values())

    def begin(self) -> OidcStart:
        """Begin a log-in.

        Raises:
            ServiceUnavailable: the provider does not answer, or not as one.
        """
        metadata, _ = self._discover()
        state, verifier, nonce, binding = (generate_token(48) for _ in range(4))
        url = prepare_grant_uri(
            _endpoint(metadata, "authorization_endpoint"),
            self.settings.client_id,
            "code",
            redirect_uri=self._redirect,
            scope=self.settings.scopes,
            state=state,
            nonce=nonce,
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )
        with self._lock:
            now = self._clock()
            while self._waiting and (
                len(self._waiting) >= _WAITING or now - next(iter(self._waiting.values())).since >= _WAITING_SECONDS
            ):
                self._waiting.popitem(last=False)
            self._waiting[state] = _Waiting(_digest(binding), verifier, nonce, now)
        return OidcStart(str(url), binding)

    def finish(self, query: Mapping[str, str], binding: str) -> OidcUser:
        """Finish a log-in.

        Args:
            query: parameters with which the browser came back.
            binding: value of the cookie; empty if the browser sent none.

        Raises:
            LoginRequired: the provider refused, the log-in was not begun by this browser, or a claim is invalid.
            ServiceUnavailable: the provider does not answer, or not as one.
        """
        with self._lock:
            waiting = self._waiting.pop(query.get("state", ""), None)
        if (
            waiting is None
            or self._clock() - waiting.since >= _WAITING_SECONDS
            or not hmac.compare_digest(waiting.binding, _digest(binding))
        ):
            raise LoginRequired("this log-in was not begun in this browser, or took too long; log in again")
        if "code" not in query:
            raise LoginRequired(
                f"the provider refused the log-in ({shown_text(query.get('error', 'no reason'))[:200]})"
            )
        metadata, policy = self._discover()
        # A provider that serves several issuers says which one answers, RFC 9207.
        if query.get("iss", metadata["issuer"]) != metadata["issuer"]:
            raise LoginRequired("the log-in comes from another provider")
        try:
            with _http(policy) as client:
                token = self._exchange(client, metadata, query["code"], waiting.verifier)
                keys = _json(client.get(_endpoint(metadata, "jwks_uri")))
                claims = self._claims(token, keys, metadata["issuer"], waiting.nonce)
                if self.settings.groups_claim not in claims and "userinfo_endpoint" in metadata:
                    bearer = {"Authorization": f"Bearer {token.get('access_token', '')}"}
                    more = _json(client.get(_endpoint(metadata, "userinfo_endpoint"), headers=bearer))
                    if more.get("sub") != claims["sub"]:
                        raise LoginRequired("the provider's information is about another user")
                    claims = {**more, **claims}
        except JoseError as error:
            raise LoginRequired(f"the provider's reply is invalid ({shown_text(str(error))[:200]})") from None
        except (httpx.HTTPError, SourceError) as error:
            raise _unavailable(self.settings, error) from None
        return OidcUser(str(claims["iss"]), str(claims["sub"]), self._name(claims), self._groups(claims))

    def _exchange(self, client: httpx.Client, metadata: dict[str, Any], code: str, verifier: str) -> dict[str, Any]:
        """The tokens for a code. Raises LoginRequired, httpx.HTTPError."""
        extra = {"code": code, "code_verifier": verifier, "redirect_uri": self._redirect}
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if self._secret is None:
            extra["client_id"] = self.settings.client_id
        else:
            # RFC 6749, 2.3.1: name and secret are encoded before they are joined.
            pair = f"{quote(self.settings.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        body = prepare_token_request("authorization_code", **extra)
        reply = client.post(_endpoint(metadata, "token_endpoint"), content=body, headers=headers)
        if 400 <= reply.status_code < 500:
            why = shown_text(reply.text[:500])
            raise LoginRequired(f"the provider refused the code of the log-in; log in again ({why[:200]})")
        return _json(reply)

    def _claims(self, token: dict[str, Any], keys: dict[str, Any], issuer: str, nonce: str) -> dict[str, Any]:
        """The claims of the ID token. Raises JoseError, LoginRequired."""
        text = token.get("id_token")
        if not isinstance(text, str):
            raise LoginRequired("the provider sent no ID token")
        try:
            decoded = jwt.decode(text, KeySet.import_key_set(keys), algorithms=_ALGORITHMS)  # type: ignore[arg-type]
        except (ValueError, KeyError, TypeError) as error:
            raise LoginRequired(f"the provider's ID token is invalid ({type(error).__name__})") from None
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            options={"iss": {"value": issuer}, "aud": {"value": self.settings.client_id}},
            params={
                "nonce": nonce,
                "client_id": self.settings.client_id,
                "access_token": token.get("access_token"),
            },
        )
        claims.validate(leeway=_LEEWAY_SECONDS)
        if not isinstance(claims["sub"], str) or not 1 <= len(claims["sub"]) <= 255:
            raise LoginRequired("the provider's ID token has an invalid subject")
        return dict(claims)

    def _name(self, claims: Mapping[str, Any]) -> str:
        """A name to show; a subject with other letters is shown by its digest."""
        for claim in (self.settings.name_claim, "email", "sub"):
            text = str(claims.get(claim) or "").lower()
            if _NAME.fullmatch(text):
                return f"oidc:{text}"
        return f"oidc:{_digest(str(claims['sub']))[:16]}"

    def _groups(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        groups = claims.get(self.settings.groups_claim, ())
        if isinstance(groups, str):
            groups = [groups]
        return tuple(str(group) for group in groups) if isinstance(groups, Sequence) else ()

    def _discover(self) -> tuple[dict[str, Any], UrlPolicy]:
        """What the provider says about itself, and the policy for the addresses that it names."""
        with self._lock:
            held = self._metadata
        if held is not None and self._clock() - held[0] < _METADATA_SECONDS:
            return held[1], held[2]
        issuer = self.settings.issuer.rstrip("/")
        try:
            policy = self._policy.named_by(check_url(issuer, self._policy))
            with _http(self._policy) as client:
                metadata = _json(client.get(f"{issuer}/.well-known/openid-configuration"))
        except (httpx.HTTPError, SourceError) as error:
            raise _unavailable(self.settings, error) from None
        if str(metadata.get("issuer", "")).rstrip("/") != issuer:
            raise ServiceUnavailable(
                f"{mask_url(issuer)}: says that it is another OpenID Connect provider; check oidc.issuer"
            )
        with self._lock:
            self._metadata = (self._clock(), metadata, policy)
        return metadata, policy


class _PinnedTransport(httpx.BaseTransport):
    """Connects to the address that the policy has checked; the certificate must be valid for the URL's host."""

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = policy
        self._transport = httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its reply, of at most 1 MiB. Raises SourceError, httpx.HTTPError."""
        checked = check_url(str(request.url), self._policy)
        _check_encryption(checked)
        request.headers["Host"] = request.url.netloc.decode("ascii")
        request.extensions = {**request.extensions, "sni_hostname": str(checked.host)}
        request.url = request.url.copy_with(host=str(checked.address))
        response = self._transport.handle_request(request)
        body = bytearray()
        try:
            for part in response.iter_raw():
                body += part
                if len(body) > _MAX_BYTES:
                    raise httpx.ReadError("the reply is larger than allowed")
        finally:
            response.close()
        return httpx.Response(response.status_code, headers=response.headers, content=bytes(body), request=request)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def _http(policy: UrlPolicy) -> httpx.Client:
    return httpx.Client(transport=_PinnedTransport(policy), timeout=_TIMEOUT, trust_env=False)


def _check_encryption(checked: CheckedUrl) -> None:
    if checked.scheme != "https" and not checked.loopback:
        raise SourceError(f"{mask_url(checked.url)}: must be https")


def _endpoint(metadata: Mapping[str, Any], name: str) -> str:
    value = metadata.get(name)
    if not isinstance(value, str) or urlsplit(value).scheme not in ("http", "https"):
        raise ServiceUnavailable(f"the OpenID Connect provider names no {name}")
    return value


def _json(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a reply. Raises httpx.HTTPError."""
    if response.status_code != 200:
        raise httpx.HTTPError(f"it answered with status {response.status_code}")
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise httpx.HTTPError("it answered with something else than a JSON object")
    return value


def _unavailable(settings: OidcSettings, error: Exception) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"{mask_url(settings.issuer)}: the OpenID Connect provider does not answer ({shown_text(str(error))[:200]})"
    )


def _read_secret(settings: OidcSettings) -> str | None:
    if settings.client_secret_file is None:
        return None
    try:
        with settings.client_secret_file.open("rb") as file:
            return file.read(_MAX_SECRET_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{settings.client_secret_file}: the client's secret is not readable") from None


def _rank(grant: Grant) -> int:
    return list(type(grant.role)).index(grant.role)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
