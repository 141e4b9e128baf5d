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

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
PASSWORD = "correct-horse"


def _certificate(folder: Path) -> None:
    """A certificate authority, and a server's certificate by it for 127.0.0.1, as the broker wants it."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    key = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=yard-ca")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=yard")
    (folder / "names.cnf").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", "2", "-extfile", "names.cnf", "-out", "server.crt"),
    )
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", "server.key", "-out", "server.p8")
    (folder / "server.pem").write_text((folder / "server.p8").read_text() + (folder / "server.crt").read_text())


EXTRA = """
listeners=SASL_SSL://127.0.0.1:{port},INSIDE://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SASL_SSL://127.0.0.1:{port},INSIDE://127.0.0.1:{inside}
listener.security.protocol.map=SASL_SSL:SASL_SSL,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=INSIDE
sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
    user_yard="{password}";
ssl.keystore.type=PEM
ssl.keystore.location={pem}
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Path]]:
    """A broker that speaks TLS with SASL only, and the certificate of its authority."""
    need("java", "mvn")
    folder = tmp_path_factory.mktemp("secured")
    _certificate(folder / "tls")
    server = Broker(folder / "kafka", KAFKA_SCRAM=f"SCRAM-SHA-256=[name=yard,password={PASSWORD}]")
    extra = EXTRA.format(
        port=server.port,
        controller=server.controller,
        inside=free_ports(1)[0],
        password=PASSWORD,
        pem=folder / "tls" / "server.pem",
    )
    (server.folder / "extra.properties").write_text(extra)
    server.start()
    ca = folder / "tls" / "ca.pem"
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
