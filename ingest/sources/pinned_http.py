"""HTTP client under the URL policy: connections go to the address that was checked, and redirects are checked again.

`Host` and the server name in TLS are still the URL's host, so that the certificate is verified against that name.

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
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from index.errors import SourceNotFound, mask_url
from ingest.sources.url_policy import CheckedUrl, UrlPolicy, check_url

__all__ = ["PinnedHttp", "Response"]

_MAX_REDIRECTS = 5
_MAX_BYTES = 256 * 2**20


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to the address of a checked URL."""

    def __init__(self, checked: CheckedUrl, timeout: float) -> None:
        super().__init__(str(checked.host), checked.port, timeout=timeout)
        self._checked = checked

    def connect(self) -> None:
        """Connect to the address."""
        self.sock = socket.create_connection((self._checked.address, self._checked.port), self.timeout)


class _PinnedTlsConnection(_PinnedConnection):
    """The same with TLS. The certificate must be valid for the URL's host."""

    def connect(self) -> None:
        """Connect to the address and start TLS."""
        super().connect()
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self._checked.host)


class PinnedHttp:
    """Opens http(s) URLs that a policy allows.

    Args:
        policy: checked for each URL and each redirect.
        timeout: longest wait for a connection, and for the next bytes, in seconds.
        max_bytes: most bytes of one response; None for an endless stream.
    """

    def __init__(self, policy: UrlPolicy, *, timeout: float, max_bytes: int | None = _MAX_BYTES) -> None:
        self.policy, self.timeout, self.max_bytes = policy, timeout, max_bytes

    def open(self, url: str, headers: dict[str, str] | None = None) -> Response:
        """Send a GET request and return the response, whose body can be read once.

        A user name and password in the URL are sent as basic authentication, to that URL only and not to redirects.

        Raises:
            SourceDenied: the policy forbids the URL or a redirect.
            SourceNotFound: the URL is not http(s), there is no connection, or the status is neither 200 nor 206.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            scheme = urlsplit(url).scheme.lower()
            if scheme not in ("http", "https"):
                raise SourceNotFound(f"{mask_url(url)}: only http:// and https:// can be read here")
            checked = check_url(url, self.policy)
            connection = (_PinnedTlsConnection if scheme == "https" else _PinnedConnection)(checked, self.timeout)
            parts = urlsplit(url)
            all_headers = {"User-Agent": "sightline", **_basic_authentication(parts), **(headers or {})}
            path = parts.path or "/"
            try:
                connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers=all_headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise SourceNotFound(f"{mask_url(url)}: no response ({error}); check the address") from None
            location = response.getheader("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                connection.close()
                url = urljoin(url, location)
                continue
            if response.status not in (200, 206):
                connection.close()
                raise SourceNotFound(
                    f"{mask_url(url)}: the server returned {response.status} {response.reason}; check the address"
                )
            return Response(url, response, connection, self.max_bytes)
        raise SourceNotFound(f"{mask_url(url)}: more than {_MAX_REDIRECTS} redirects; check the server's configuration")


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
    """

    def __init__(self, url: str, response: Any, connection: http.client.HTTPConnection, max_bytes: int | None) -> None:
        self.name, self.type = url, (response.getheader("Content-Type") or "").lower()
        self._response, self._connection, self._left = response, connection, max_bytes

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, or all that are left. Raises SourceNotFound if the body has more bytes than allowed."""
        data: bytes = self._response.read(size if size >= 0 else None)
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
            self._connection.close()
        super().close()
