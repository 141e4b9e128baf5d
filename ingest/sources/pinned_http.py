"""HTTP under the URL policy: each connection goes to the address that was checked, each redirect is checked again.

The name stays in `Host` and in TLS's server name, so that certificates are those of the name.
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

__all__ = ["PinnedHttp"]

_REDIRECTS = 5
_MOST_BYTES = 256 * 2**20


class _Plain(http.client.HTTPConnection):
    """A connection whose socket is made to an address that was checked."""

    def __init__(self, checked: CheckedUrl, timeout: float) -> None:
        super().__init__(str(checked.host), checked.port, timeout=timeout)
        self._checked = checked

    def connect(self) -> None:
        self.sock = socket.create_connection((self._checked.address, self._checked.port), self.timeout)


class _Tls(_Plain):
    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self._checked.host)


class PinnedHttp:
    """Opens http(s) URLs that the policy allows.

    Args:
        timeout: seconds of silence after which connecting or reading gives up.
        most_bytes: of one response; None for a stream without an end.
    """

    def __init__(self, policy: UrlPolicy, *, timeout: float, max_bytes: int | None = _MOST_BYTES) -> None:
        self.policy, self.timeout, self.max_bytes = policy, timeout, max_bytes

    def open(self, url: str, headers: dict[str, str] | None = None) -> Response:
        """The response's body, to be read once.

        Raises:
            SourceDenied: the policy forbids it, or what it redirects to.
            SourceNotFound: not http(s), nobody answers, or the answer is not 200 or 206.
        """
        for _ in range(_REDIRECTS + 1):
            scheme = urlsplit(url).scheme.lower()
            if scheme not in ("http", "https"):
                raise SourceNotFound(f"{mask_url(url)}: only http and https are followed from here")
            checked = check_url(url, self.policy)
            connection = (_Tls if scheme == "https" else _Plain)(checked, self.timeout)
            parts = urlsplit(url)
            sent = {"User-Agent": "sightline", **_login(parts), **(headers or {})}
            path = parts.path or "/"
            try:
                connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers=sent)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise SourceNotFound(f"{mask_url(url)}: nobody answers ({error}); check the address") from None
            where = response.getheader("Location")
            if response.status in (301, 302, 303, 307, 308) and where:
                connection.close()
                url = urljoin(url, where)
                continue
            if response.status not in (200, 206):
                connection.close()
                raise SourceNotFound(f"{mask_url(url)}: answered {response.status} {response.reason}")
            return Response(url, response, connection, self.max_bytes)
        raise SourceNotFound(f"{mask_url(url)}: more than {_REDIRECTS} redirects")


def _login(parts: Any) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Authorization": "Basic " + base64.b64encode(pair).decode()}


class Response(io.RawIOBase):
    """A body of bounded size. `name` is the URL in the end."""

    def __init__(self, url: str, response: Any, connection: http.client.HTTPConnection, most: int | None) -> None:
        self.name, self.type = url, (response.getheader("Content-Type") or "").lower()
        self._response, self._connection, self._left = response, connection, most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._response.read(size if size >= 0 else None)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise SourceNotFound(f"{mask_url(str(self.name))}: larger than may be read")
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._connection.close()
        super().close()
