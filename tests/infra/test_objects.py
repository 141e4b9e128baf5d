"""The users of the object store in Compose: each may do what its container does, and nothing else.

An S3 server that enforces the policies runs on loopback; it does not know conditions, so the prefixes of listings are
compared with the policies here.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import fsspec
import pytest
import yaml

from index.errors import StoreDenied
from index.store import Store
from tests.support.kafka_server import free_ports
from tests.support.model_service import until
from tests.support.records import PAIR, make_records, make_segment

pytestmark = pytest.mark.system
INFRA = Path(__file__).parents[2] / "infra"
POLICIES = {path.stem: json.loads(path.read_text()) for path in (INFRA / "objects").glob("*.json")}
STORE = "s3://sightline/store"
Become = Callable[[str], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, tuple[str, str]], Path]]:
    """The server's address, the keys of each user, and the log of its requests."""
    import boto3

    log, (port,) = tmp_path_factory.mktemp("objects") / "log", free_ports(1)
    url = f"http://127.0.0.1:{port}"
    # A process of its own: deltalake keeps the interpreter's lock while it waits for an answer.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        until(lambda: b"Running on" in log.read_bytes())
        yield url, _users(boto3, url), log
    finally:
        server.kill()
        server.wait()


def _users(boto3: Any, url: str) -> dict[str, tuple[str, str]]:
    """Make the bucket and the users, and enforce their policies from then on; the keys of each."""
    root = {"endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "root", "aws_secret_access_key": "x"}
    boto3.client("s3", **root).create_bucket(Bucket="sightline")
    iam, made = boto3.client("iam", **root), {}
    for name, policy in POLICIES.items():
        plain = [{key: value for key, value in each.items() if key != "Condition"} for each in policy["Statement"]]
        for each in plain:  # the server compares the removal of several objects with the bucket
            each["Resource"] = (
                [*each["Resource"], "arn:aws:s3:::sightline"]
                if "s3:DeleteObject" in each["Action"]
                else each["Resource"]
            )
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps({**policy, "Statement": plain}))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        made[name] = (key["AccessKeyId"], key["SecretAccessKey"])

    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", method="POST", headers=headers)
    urllib.request.urlopen(request).close()
    return made


@pytest.fixture
def become(server: tuple[str, dict[str, tuple[str, str]], Path], monkeypatch: pytest.MonkeyPatch) -> Become:
    """`become("consume")` sets the environment of that container."""
    url, made, _ = server
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def change(user: str) -> None:
        environment = {"ENDPOINT_URL": url, "ALLOW_HTTP": "true", "REGION": "us-east-1", "DEFAULT_REGION": "us-east-1"}
        environment |= dict(zip(("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), made[user], strict=True))
        for name, value in environment.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    return change


def test_each_user_does_its_work_and_no_other(
    become: Become, server: tuple[str, dict[str, tuple[str, str]], Path]
) -> None:
    log, read = server[2], 0
    records, segment = make_records(), "s3://sightline/segments/gate/1.mp4"

    def listed(user: str) -> None:
        """Every listing since the last call was of a prefix that the user may list."""
        (allowed,) = (each["Condition"]["StringLike"]["s3:prefix"] for each in _statements(user, "s3:ListBucket"))
        nonlocal read
        lines = log.read_text().splitlines()
        for line in lines[read:]:
            for query in re.findall(r'"GET /sightline/?\?(\S*)', line):
                if query != "location":
                    (prefix,) = parse_qs(query)["prefix"]
                    assert any(fnmatch.fnmatchcase(prefix, pattern) for pattern in allowed), f"{user}: {prefix}"
        read = len(lines)

    become("cameras")
    with fsspec.open(segment, "wb") as file:
        file.write(b"footage")
    listed("cameras")
    with pytest.raises(StoreDenied):
        Store.open_or_create(STORE, PAIR)
    read = len(log.read_text().splitlines())

    become("consume")
    with fsspec.open(segment, "rb") as file:
        assert file.read() == b"footage"
    store = Store.open_or_create(STORE, PAIR)
    assert store.append(make_segment(records), records)
    listed("consume")
    with pytest.raises(PermissionError), fsspec.open(segment, "wb") as file:
        file.write(b"other")
    read = len(log.read_text().splitlines())

    become("compact")
    assert Store.open(STORE).compact()
    Store.open(STORE).forget("front", int(records.captured_at[3]))
    Store.open(STORE).compact()
    listed("compact")
    with pytest.raises(PermissionError), fsspec.open(segment, "rb") as file:
        file.read()
    read = len(log.read_text().splitlines())

    become("model-service")
    store = Store.open(STORE)
    window = store.window()
    assert len(window) == 17
    assert len(store.patches(window)) == 17
    listed("model-service")
    with pytest.raises(StoreDenied):
        store.append(make_segment(records, 1), records)
    with pytest.raises(StoreDenied):
        store.forget("front")


def test_policies_belong_to_containers_and_name_one_bucket() -> None:
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    users = {
        service["environment"]["AWS_ACCESS_KEY_ID"]
        for service in services.values()
        if "AWS_ACCESS_KEY_ID" in service.get("environment", {})
    }
    assert users == set(POLICIES)
    mounted = {Path(mount.split(":")[0]).stem for mount in services["bucket"]["volumes"] if "/policies/" in mount}
    assert mounted == set(POLICIES)
    for name, policy in POLICIES.items():
        for statement in policy["Statement"]:
            assert statement["Effect"] == "Allow"
            assert not any("*" in action for action in statement["Action"]), name
            assert all(
                re.match(r"arn:aws:s3:::sightline(/(store|segments)/\*)?$", each) for each in statement["Resource"]
            )
    assert not _statements("model-service", "s3:PutObject") + _statements("model-service", "s3:DeleteObject")


def _statements(user: str, action: str) -> list[dict[str, dict[str, dict[str, list[str]]]]]:
    return [each for each in POLICIES[user]["Statement"] if action in each["Action"]]
