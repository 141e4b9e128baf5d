"""An S3 server on loopback, and what a process asked it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import s3fs

from tests.support.kafka_server import free_ports
from tests.support.processes import ROOT

__all__ = ["Counted", "S3Server", "connect", "counted", "s3_server"]

_LINE = re.compile(r'"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP')


@dataclass
class S3Server:
    """A server with the bucket `footage`."""

    url: str
    """Its address."""
    log: Path
    """The log of its requests."""

    def requests(self, since: int = 0) -> list[tuple[str, str]]:
        """Method and path of each request after the first `since` of them."""
        return [(each[1], each[2]) for each in _LINE.finditer(self.log.read_text())][since:]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start a server, which is a process of its own: deltalake keeps the interpreter's lock while it waits."""
    import boto3

    (port,), log = free_ports(1), folder / "s3.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    try:
        began = time.monotonic()
        while b"Running on" not in log.read_bytes():
            assert time.monotonic() - began < 300
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="footage")
        yield S3Server(url, log)
    finally:
        server.kill()
        server.wait()


def connect(server: S3Server, patch: pytest.MonkeyPatch) -> None:
    """Set the environment of a client of the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ENDPOINT_URL", server.url)
    patch.setenv("AWS_ALLOW_HTTP", "true")
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_REGION", "us-east-1")
    fsspec.asyn.reset_lock()
    s3fs.S3FileSystem.clear_instance_cache()


@dataclass
class Counted:
    """What s3fs asked for in a block."""

    calls: Counter[str] = field(default_factory=Counter)
    """Number of requests by operation."""
    bytes: int = 0
    """Bytes of the content of objects that were read."""


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Count the requests of s3fs in a block."""
    found, call = Counted(), s3fs.S3FileSystem._call_s3

    async def counting(self, method, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Count, and do it."""
        found.calls[method] += 1
        answer = await call(self, method, *args, **kwargs)
        if method == "get_object":
            found.bytes += answer["ContentLength"]
        return answer

    with patch.context() as inner:
        inner.setattr(s3fs.S3FileSystem, "_call_s3", counting)
        yield found
