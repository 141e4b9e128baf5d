"""Where a store can be, and what a user reads where it cannot: one typed sentence that says what to do."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

import index.delta.failures
from index.commits import bulk
from index.delta.failures import translate_errors
from index.delta.objects import S3Access, delta_options, s3_access
from index.errors import (
    EmptyWindow,
    SourceNotFound,
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    UnknownStream,
    UsageError,
)
from index.patches.codec import PatchEncoding
from index.standing_questions import StandingQuestionStore
from index.store import Store
from ingest.live.clip import recorded
from ingest.live.recorder import Recorder
from ingest.live.retention import expire
from ingest.live.spool import SpooledSegment
from ingest.segments.names import NamedSegment
from ingest.sources.files import fetched
from pipeline.backfill import staging
from pipeline.backfill.manifest import read_manifest
from tests.support.kafka_server import free_ports
from tests.support.processes import ROOT, environment
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment


def use(store: Store) -> None:
    """Do everything once with a store."""
    records, other = make_records(), make_records("back")
    store.append(make_segment(records), records)
    chunk = bulk.write(store.tables, make_segment(other), other)
    assert chunk is not None
    bulk.commit(store.tables, [chunk])
    window = store.window()
    assert len(store.patches(window)) == len(store.pictures(window)) == 40
    store.seal()
    store.compact()
    assert store.verify() == []
    store.forget("front", BEGAN + 5 * SECOND)
    store.forget("back")
    assert store.verify() == []
    assert store.streams()[0].frames == 15


# ---- local paths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a b", "a#b", "a?b", "前门", "100%", "a*b", "'a'", 'a"b', "a:b", "{a}", "a+b&c=d", "~a"]
)
def test_unusual_paths_work(tmp_path: Path, name: str) -> None:
    use(Store.create(tmp_path / name, PAIR))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert Store.open(tmp_path / name).streams()[0].frames == 15


@pytest.mark.parametrize("name", ["a[1]", "a]", "a%20b", "a\\b", "a\nb", "a\x7fb", "a::b", "a\udce9"])
def test_paths_that_the_libraries_misread_are_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    for act in (Store.open, Store.open_or_create, Store.create):
        with pytest.raises(UsageError, match="a store cannot be at a path with") as caught:
            act(tmp_path / name / "store", encoders=PAIR)
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()
    assert not list(tmp_path.iterdir())


# ---- nothing yet -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fp16", "differential"])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_store_without_frames_has_nothing_yet(tmp_path: Path, kind: str, rows: int) -> None:
    """Also one with a segment in which nothing was decoded."""
    store = Store.create(tmp_path / "store", PAIR, PatchEncoding(kind=kind))
    if rows:
        store.append(make_segment(make_records()).model_copy(update={"frames": 0}), None)
    assert store.streams() == []
    assert store.last_captured_at("front") is None
    for start, end in ((None, None), (BEGAN, None), (BEGAN, BEGAN + SECOND)):
        with pytest.raises(EmptyWindow, match="nothing yet: the store has no frames; ingest some footage first"):
            store.window(None, start, end)
    with pytest.raises(UnknownStream, match="it has none yet"):
        store.window(["front"])
    with pytest.raises(EmptyWindow, match="nothing yet"):
        store.search(np.zeros(PAIR.frame.dimension, np.float32), top=3)
    assert store.seal(today="1970-01-01") == store.reindex() == 0
    assert store.verify() == []
    store.compact()


# ---- read-only -------------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_a_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)  # needs root, as the test of a full disk
    try:
        store = Store.create(disk / "store", PAIR)
        records = make_records()
        store.append(make_segment(records), records)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        store = Store.open(disk / "store")
        window = store.window()
        assert len(store.patches(window)) == len(store.pictures(window)) == 20
        assert store.verify() == []
        more = make_records("front", BEGAN + 40 * SECOND)
        for act in (lambda: store.append(make_segment(more, 1), more), lambda: store.forget("front"), store.compact):
            with pytest.raises(StoreDenied, match="read-only"):
                act()
        with pytest.raises(StoreDenied, match="read-only"):
            Store.create(disk / "other", PAIR)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_the_operating_system_refuses_to_write(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("index.delta.table.write_deltalake", refuse)
    records = make_records()
    with pytest.raises(StoreDenied, match="read-only"):
        store.append(make_segment(records), records)


def test_a_panic_of_rust_is_an_error_of_the_store() -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(StoreCorrupt, match="cannot be read or written"), translate_errors("/store"):
        raise panic("called `Result::unwrap()` on an `Err` value")
    with pytest.raises(KeyboardInterrupt), translate_errors("/store"):
        raise KeyboardInterrupt


# ---- object stores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s4://bucket/store", "s4:// is not a kind of store; use a path, or one of s3://"),
        ("https://user:hunter2@host/store", r"https://\*\*\*@host/store: https:// is not a kind of store"),
        ("s3://", "names no bucket; write s3://BUCKET/FOLDER"),
    ],
)
def test_urls_that_name_no_store(url: str, why: str) -> None:
    for act in (Store.open, Store.open_or_create):
        with pytest.raises(UsageError, match=why):
            act(url, encoders=PAIR)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server with the bucket "footage"."""
    with s3_server() as address:
        yield address


@contextmanager
def s3_server(**environment: str) -> Iterator[str]:
    """The address of an S3 server with the bucket "footage"."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        began = time.monotonic()
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() - began < 300
                time.sleep(0.2)
        boto3 = pytest.importorskip("boto3")
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket="footage")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a client of the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.system
@pytest.mark.usefixtures("s3")
def test_a_store_in_a_bucket() -> None:
    use(Store.create("s3://footage/store", PAIR))


@pytest.mark.system
@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("change", "url", "kind", "why"),
    [
        ({}, "s3://nothere/store", StoreNotFound, "no such bucket; create it, or check --store"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"},
            "s3://footage/other",
            StoreDenied,
            "no credentials; set those of its client, for S3 AWS_ACCESS_KEY_ID",
        ),
        ({"AWS_ALLOW_HTTP": None}, "s3://footage/other", StoreDenied, "set AWS_ALLOW_HTTP=true"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://footage/other", StoreUnavailable, "does not answer"),
    ],
)
def test_an_object_store_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], url: str, kind: type[StoreError], why: str
) -> None:
    for name, value in change.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    for act in (Store.open, Store.open_or_create, Store.create):
        with pytest.raises(kind, match=why) as caught:
            act(url, encoders=PAIR)
        assert str(caught.value).isprintable()
        assert "secret" not in str(caught.value).lower().replace("aws_secret_access_key", "")


PROFILE = """
[profile vault]
region = us-east-1
services = local
[services local]
s3 =
  endpoint_url = {endpoint}
"""
KEYS = """
[default]
aws_access_key_id = nobody
aws_secret_access_key = nothing
[vault]
aws_access_key_id = key
aws_secret_access_key = secret
aws_session_token = token
"""


@pytest.fixture
def profile(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Access:
    """Where S3 is, and its keys, stand in the files of the AWS command line alone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(PROFILE.format(endpoint=endpoint))
    (tmp_path / "credentials").write_text(KEYS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "vault")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    return S3Access(endpoint, "us-east-1", "key", "secret", "token")


@pytest.mark.system
def test_a_profile_serves_every_client(profile: S3Access, tmp_path: Path) -> None:
    """Delta, its Arrow file system and s3fs."""
    assert s3_access() == profile
    use(Store.create("s3://footage/by-profile", PAIR))
    StandingQuestionStore("s3://footage/by-profile").write_state("front", b"{}")
    staging.put("s3://footage/staging/one", b"1")
    assert staging.get("s3://footage/staging/one") == b"1"
    # Keys that are replaced count from the next use.
    (tmp_path / "credentials").write_text(KEYS.replace("= key", "= another"))
    os.utime(tmp_path / "credentials", (1, 1))
    assert s3_access().key == "another"


def test_the_environment_comes_before_the_profile(profile: S3Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own")
    expected = S3Access("https://s3.example", "eu-west-1", "mine", "own", None)
    assert s3_access() == expected
    assert delta_options("s3://bucket/store") == {
        "AWS_ENDPOINT_URL": "https://s3.example",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "mine",
        "AWS_SECRET_ACCESS_KEY": "own",
    }
    assert delta_options("gs://bucket/store") is delta_options("/a/path") is None
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert s3_access().region == "eu-north-1"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"AWS_PROFILE": "none"}, "the profile 'none' cannot be read"),
        ({"AWS_ACCESS_KEY_ID": "half"}, "the keys of S3 are incomplete"),
    ],
)
@pytest.mark.usefixtures("profile")
def test_a_profile_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, change: dict[str, str], why: str) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    for act in (lambda: Store.open("s3://footage/other"), lambda: StandingQuestionStore("s3://footage/other")):
        with pytest.raises(StoreDenied, match=why):
            act()


def segment(folder: Path) -> SpooledSegment:
    path = folder / "segment.mp4"
    path.write_bytes(b"footage")
    return SpooledSegment(NamedSegment("gate", BEGAN, 10.0, "video/mp4", "gate/2024-03-01/a.mp4"), path, 7, 0)


def uses(url: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that reads or writes objects."""
    standing = StandingQuestionStore(url)
    return {
        "open": lambda: Store.open(url),
        "create": lambda: Store.create(url, PAIR),
        "questions": standing.questions,
        "write state": lambda: standing.write_state("front", b"{}"),
        "stage": lambda: staging.put(f"{url}/staging/one", b"1"),
        "staged": lambda: staging.get(f"{url}/staging/one"),
        "remove staged": lambda: staging.remove(f"{url}/staging"),
        "record": lambda: Recorder(url).write([segment(folder)]),
        "expire": lambda: expire(url, BEGAN),
        "recorded": lambda: recorded(url, "gate", BEGAN, BEGAN + SECOND),
        "fetch": lambda: fetched(f"{url}/a.mp4").__enter__(),
        "manifest": lambda: read_manifest(f"{url}/a.csv"),
    }


QUIET = {"questions", "staged", "remove staged", "expire", "recorded"}
"""What an absent bucket has nothing for."""


@pytest.mark.system
@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("change", "bucket", "kind", "why"),
    [
        ({}, "nothere", StoreNotFound, "no such bucket|no such file|no manifest there"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "footage", StoreUnavailable, "the object store does not answer"),
        ({"keys": "wrong"}, "footage", StoreDenied, "access is refused|refuses access|no permission|credentials"),
    ],
)
def test_no_text_of_a_library_reaches_a_user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    bucket: str,
    kind: type[StoreError],
    why: str,
) -> None:
    with ExitStack() as stack:
        if "keys" in change:  # a server that knows no key: after one action, which makes the bucket
            strict = stack.enter_context(s3_server(INITIAL_NO_AUTH_ACTION_COUNT="1"))
            monkeypatch.setenv("AWS_ENDPOINT_URL", strict)
        else:
            for name, value in change.items():
                monkeypatch.setenv(name, value)
        for name, act in uses(f"s3://{bucket}/place", tmp_path).items():
            try:
                act()
            except (kind, SourceNotFound) as error:
                text = str(error)
                assert re.search(why, text), (name, text)
                assert text.isprintable()
                assert not re.search(r"Errno|botocore|Error\(|operation|HTTP|secret\b(?!_)", text), (name, text)
            else:
                assert bucket == "nothere", name
                assert name in QUIET, name


@pytest.mark.system
def test_a_command_prints_one_line_where_there_are_no_credentials(tmp_path: Path) -> None:
    kept = {name: value for name, value in environment(tmp_path).items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "streams", "--store", "s3://none/store"],
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sightline: s3://none/store")
    assert done.stderr.count("\n") == 1, done.stderr


def test_every_phrase_of_a_failure_is_lower_case() -> None:
    for name, phrases in vars(index.delta.failures).items():
        if name.startswith("_") and isinstance(phrases, tuple):
            assert all(phrase == phrase.lower() for phrase in phrases), name
