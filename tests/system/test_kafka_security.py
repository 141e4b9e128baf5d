"""TLS and SASL against a real broker: let in with the right password over a certificate that is checked, else kept out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from index.errors import BrokerUnavailable
from index.store import Store
from ingest.kafka.clients import Sender, make_topics
from ingest.kafka.dead_letters import list_letters
from ingest.kafka.poller import consume
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from tests.support.footage import make_video
from tests.support.kafka_server import Broker, free_ports
from tests.support.kafka_worker import counting
from tests.support.processes import Process
from tests.support.records import PAIR
from tests.support.tools import need

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
PASSWORD = "correct-horse"
INFRA = Path(__file__).parents[2] / "infra"


EXTRA = """
listener.name.clients.sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN
listener.name.clients.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""
"""What the broker of these tests has besides the configuration of Compose."""


def _as_in_compose(server: Broker, secrets: Path) -> str:
    """The broker's configuration in Compose, with addresses and paths of a test."""
    text = (INFRA / "kafka" / "server.properties").read_text()
    changes = {
        "CLIENTS://:9092": f"CLIENTS://127.0.0.1:{server.port}",
        "CLIENTS://kafka:9092": f"CLIENTS://127.0.0.1:{server.port}",
        "localhost:9093": f"127.0.0.1:{server.controller}",
        "localhost:9094": f"127.0.0.1:{free_ports(1)[0]}",
        "/run/secrets": str(secrets),
        "/var/lib/kafka/data": str(server.folder / "data"),
    }
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text + EXTRA


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Path]]:
    """The broker of Compose, which speaks TLS with SASL only, and the certificate of its authority."""
    need("java", "mvn")
    folder = tmp_path_factory.mktemp("secured")
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "kafka_password_yard").write_text(PASSWORD)
    done = subprocess.run([INFRA / "secrets.sh", secrets], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    server = Broker(folder / "kafka", KAFKA_SCRAM=f"SCRAM-SHA-256=[name=yard,password={PASSWORD}]")
    (server.folder / "extra.properties").write_text(_as_in_compose(server, secrets))
    server.start()
    ca = secrets / "kafka_ca.pem"
    try:
        server.wait(_settings(server, ca, prefix="ready", partitions=1))
        yield server, ca
    finally:
        server.close()


def _settings(server: Broker, ca: Path | None, **more: Any) -> KafkaSettings:
    given = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "username": "yard",
        "password": PASSWORD,
        "ca_file": None if ca is None else str(ca),
    }
    return server.settings(**{**given, **more})


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN"])
def test_footage_goes_through_a_secured_broker(
    secured: tuple[Broker, Path], tmp_path: Path, mechanism: str, sightline: Process
) -> None:
    server, ca = secured
    settings = _settings(server, ca, sasl_mechanism=mechanism, prefix=mechanism.lower(), partitions=2)
    make_topics(settings)
    path = tmp_path / "yard_2024-03-01T08-00-00Z.mp4"
    make_video(path, seconds=4, gop=10)
    report = publish_files([path], settings=settings, sender=lambda: Sender(settings), seconds=2)
    assert [file.segments for file in report] == [2]
    store = Store.create(tmp_path / "store", PAIR)
    report_ = consume(store, counting(), kafka=settings, group="g", settings=ConsumeSettings(), drain=True)
    assert report_.frames == 4
    assert list_letters(settings) == []
    done = sightline(
        "deadletter",
        "list",
        SIGHTLINE_KAFKA_SERVERS=server.servers,
        SIGHTLINE_KAFKA_SECURITY_PROTOCOL="SASL_SSL",
        SIGHTLINE_KAFKA_SASL_MECHANISM=mechanism,
        SIGHTLINE_KAFKA_USERNAME="yard",
        SIGHTLINE_KAFKA_PASSWORD=PASSWORD,
        SIGHTLINE_KAFKA_CA_FILE=str(ca),
        SIGHTLINE_KAFKA_PREFIX=mechanism.lower(),
    )
    assert (done.returncode, done.stdout) == (0, "0 dead letters\n"), done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": "wrong-horse"},
        {"password": "wrong-horse", "sasl_mechanism": "PLAIN"},
        {"username": "nobody"},
        {"ca_file": None},
        {"security_protocol": "PLAINTEXT"},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_refused_login_is_one_sentence(secured: tuple[Broker, Path], wrong: dict[str, Any]) -> None:
    server, ca = secured
    settings = _settings(server, ca, **{"connect_seconds": 5, **wrong})
    with pytest.raises(BrokerUnavailable) as caught:
        make_topics(settings)
    assert server.servers in str(caught.value)
    assert "horse" not in str(caught.value)
