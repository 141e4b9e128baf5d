"""A real OpenID Connect provider in a process of its own, and a browser's part of a log-in."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

__all__ = ["authorize", "provider"]


@contextmanager
def provider(users: Sequence[Mapping[str, Any]] = ()) -> Iterator[str]:
    """Run `oidc-provider-mock` on loopback; gives the issuer's URL.

    Args:
        users: claims of each user, `sub` among them.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    claims = [part for user in users for part in ("--user-claims", json.dumps(user))]
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true", *claims]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while True:
            try:
                httpx.get(f"{url}/.well-known/openid-configuration", timeout=60).raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(120)


def authorize(url: str, sub: str | None) -> dict[str, str]:
    """Log in at the provider as a browser does; gives the parameters with which it sends the browser back.

    Args:
        url: address to which the desk sent the browser.
        sub: the user; None to refuse.
    """
    form = {"action": "deny"} if sub is None else {"sub": sub}
    reply = httpx.post(url, data=form, timeout=60)
    assert reply.status_code in (302, 303), reply.text
    return dict(parse_qsl(urlsplit(reply.headers["Location"]).query))
