"""HTTP client under the URL policy: connections go to the address that was checked, and redirects are checked again.

`Host` and the server name in TLS are still the URL's host, so that the certificate is verified against that name. What
a server of the public Internet names (redirects, entries of a playlist) must be public too, even where the policy
allows
private networks: `Response.policy`. A server that sends too slowly is given up (`_SLOWEST_BYTES_PER_SECOND`).

The client is built on http.client and not on httpx. httpx would need the address in the URL and the name in an
extension, its pool would share a TLS connection between two names at one address, and its responses are no files,
which PyAV needs.
"""

from __future__ import annotations

import base64
import http.client
import io
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import unquote

from index.errors import SourceNotFound, mask_url
from ingest.sources.url_policy import CheckedUrl, UrlPolicy, check_url, split_url

__all__ = ["PinnedHttp", "Response", "tls_context"]

_MAX_REDIRECTS = 5
_MAX_BYTES = 256 * 2**20
_SLOWEST_BYTES_PER_SECOND = 8 * 1024
"""A response may wait for its server for the time-out, plus the time of its bytes at this rate."""
_REASONS = {
    401: "no permission to read it; check the credentials",
    403: "no permission to read it; check the credentials",
    404: "no such file; check the address",
    410: "no such file; check the address",
}


class _Patience:
    """How long a response may still wait for its server, in total. Time in which nobody reads does not count."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.bounded = timeout, True
        self._waited, self._received = 0.0, 0

    def readinto(self, sock: socket.socket, raw: Any, buffer: Any) -> int:
        """Read from `raw`, which reads from `sock`. Raises TimeoutError."""
        left = self.timeout
        if self.bounded:
            left = min(left, self.timeout + self._received / _SLOWEST_BYTES_PER_SECOND - self._waited)
            if left <= 0:
                raise TimeoutError(f"the server sends less than {_SLOWEST_BYTES_PER_SECOND} bytes a second")
        sock.settimeout(left)
        began = time.monotonic()
        count: int = raw.readinto(buffer) or 0
        self._waited += time.monotonic() - began
        self._received += count
        return count


class _PatientReader(io.RawIOBase):
    """The bytes of a socket, within the patience."""

    def __init__(self, sock: socket.socket, patience: _Patience) -> None:
        self._sock, self._raw, self._patience = sock, sock.makefile("rb", buffering=0), patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._patience.readinto(self._sock, self._raw, buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PatientSocket:
    """What http.client needs of a socket to read a response from it."""

    def __init__(self, sock: socket.socket, patience: _Patience) -> None:
        self._sock, self._patience = sock, patience

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_PatientReader(self._sock, self._patience))


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to the address of a checked URL."""

    def __init__(self, checked: CheckedUrl, timeout: float) -> None:
        super().__init__(str(checked.host), checked.port, timeout=timeout)
        self._checked = checked
        self.patience = _Patience(timeout)
        self.response_class = self._response  # type: ignore[assignment]

    def _response(self, sock: socket.socket, *arguments: Any, **named: Any) -> http.client.HTTPResponse:
        patient: Any = _PatientSocket(sock, self.patience)
        return http.client.HTTPResponse(patient, *arguments, **named)

    def connect(self) -> None:
        """Connect to the address."""
        self.sock = socket.create_connection((self._checked.address, self._checked.port), self.timeout)


class _PinnedTlsConnection(_PinnedConnection):
    """The same with TLS. The certificate must be valid for the URL's host."""

    def connect(self) -> None:
        """Connect to the address and start TLS."""
        super().connect()
        self.sock = tls_context().wrap_socket(self.sock, server_hostname=self._checked.host)


@cache
def tls_context() -> ssl.SSLContext:
    """The TLS settings of every connection. A process that confines itself calls this first: it reads certificates."""
    return ssl.create_default_context()


class PinnedHttp:
    """Opens http(s) URLs that a policy allows.

    Args:
        policy: checked for each URL and each redirect.
        timeout: longest wait for a connection, and for the next bytes, in seconds.
        max_bytes: most bytes of one response; None for an endless stream, which may also be slow.
    """

    def __init__(self, policy: UrlPolicy, *, timeout: float, max_bytes: int | None = _MAX_BYTES) -> None:
        self.policy, self.timeout, self.max_bytes = policy, timeout, max_bytes

    def open(self, url: str, headers: dict[str, str] | None = None) -> Response:
        """Send a GET request and return the response, whose body can be read once.

        A user name and password in the URL are sent as basic authentication, to that URL only and not to redirects.

        Raises:
            SourceDenied: the policy forbids the URL or a redirect, or a public server redirects to a private one.
            SourceNotFound: the URL is not http(s), there is no connection, or the status is neither 200 nor 206.
        """
        policy = self.policy
        for _ in range(_MAX_REDIRECTS + 1):
            parts = split_url(url)
            scheme = parts.scheme.lower()
            if scheme not in ("http", "https"):
                raise SourceNotFound(f"{mask_url(url)}: only http:// and https:// can be read here")
            checked = check_url(url, policy)
            policy = policy.named_by(checked)
            connection = (_PinnedTlsConnection if scheme == "https" else _PinnedConnection)(checked, self.timeout)
            all_headers = {"User-Agent": "sightline", **_basic_authentication(parts), **(headers or {})}
            path = parts.path or "/"
            try:
                connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers=all_headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                raise SourceNotFound(f"{mask_url(url)}: cannot be fetched ({error}); check the address") from None
            location = response.getheader("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                connection.close()
                url = split_url(location, url).geturl()
                continue
            if response.status not in (200, 206):
                connection.close()
                why = _REASONS.get(response.status, "check the address")
                raise SourceNotFound(f"{mask_url(url)}: the server returned {response.status} {response.reason}; {why}")
            connection.patience.bounded = self.max_bytes is not None
            return Response(url, response, connection, self.max_bytes, policy)
        raise SourceNotFound(f"{mask_url(url)}: more than {_MAX_REDIRECTS} redirects; check the server's configuration")

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Send a POST request and return the status, whatever it is. Redirects are not followed, the reply is not read.

        Raises:
            SourceDenied: the policy forbids the URL.
            SourceNotFound: the URL is not http(s), or there is no connection.
        """
        parts = split_url(url)
        scheme = parts.scheme.lower()
        if scheme not in ("http", "https"):
            raise SourceNotFound(f"{mask_url(url)}: only http:// and https:// can be reached here")
        checked = check_url(url, self.policy)
        connection = (_PinnedTlsConnection if scheme == "https" else _PinnedConnection)(checked, self.timeout)
        all_headers = {"User-Agent": "sightline", **_basic_authentication(parts), **headers}
        path = parts.path or "/"
        try:
            connection.request("POST", f"{path}?{parts.query}" if parts.query else path, body, all_headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceNotFound(f"{mask_url(url)}: cannot be reached ({error}); check the address") from None
        finally:
            connection.close()


def _basic_authentication(parts: Any) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Authorization": "Basic " + base64.b64encode(pair).decode()}


class Response(io.RawIOBase):
    """The body of a response, as a file that can be read once.

    Attributes:
        name: URL after redirects.
        type: content type, in lower case; empty if the server sends none.
        policy: the policy for what the response names.
    """

    def __init__(
        self,
        url: str,
        response: Any,
        connection: http.client.HTTPConnection,
        max_bytes: int | None,
        policy: UrlPolicy,
    ) -> None:
        self.name, self.type = url, (response.getheader("Content-Type") or "").lower()
        self.policy = policy
        self._response, self._connection, self._left = response, connection, max_bytes
        self._ahead = b""

    @property
    def modified(self) -> float | None:
        """Time of the last modification in seconds since 1970, None if the server sends none."""
        try:
            return parsedate_to_datetime(self._response.getheader("Last-Modified") or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return None

    def readable(self) -> bool:
        """True."""
        return True

    def peek(self, size: int) -> bytes:
        """The next bytes, at most `size`, which stay to be read. Fewer at the end of the body."""
        while len(self._ahead) < size and (more := self._receive(size - len(self._ahead))):
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, or all that are left.

        Raises:
            SourceNotFound: the body has more bytes than allowed, or ends before it is complete.
            OSError: the connection is lost, or the server sends too slowly (TimeoutError).
        """
        if size < 0:
            blocks = [self._ahead]
            self._ahead = b""
            while block := self._receive(2**16):
                blocks.append(block)
            return b"".join(blocks)
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        missing: object = None
        try:
            data: bytes = self._response.read(size)
            if not data and size and self._response.length:
                missing = f"{self._response.length} bytes are missing"
        except http.client.HTTPException as error:
            missing = error
        if missing is not None:
            shown = mask_url(str(self.name))
            raise SourceNotFound(f"{shown}: cannot be fetched (the transfer was not completed, {missing}); try again")
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise SourceNotFound(f"{mask_url(str(self.name))}: the response is larger than allowed")
        return data

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase.readinto`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._response.close()
            self._connection.close()
        super().close()
