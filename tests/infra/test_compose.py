"""The Compose file against the code and its own parts: commands, images, mounts, secrets, limits. Nothing is started here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingest.live.config import LiveSettings
from pipeline.cli.main import load_command
from pipeline.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("sightline:")}
DASHBOARD = json.loads((INFRA / "grafana" / "dashboards" / "sightline.json").read_text())
RULES = yaml.safe_load((INFRA / "prometheus" / "alerts.yml").read_text())
PROMETHEUS = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())


def _option(arguments: list[str], name: str) -> str | None:
    return next((a.partition("=")[2] for a in arguments if a.startswith(f"{name}=")), None)


@pytest.mark.parametrize("name", OURS)
def test_every_command_of_ours_parses(name: str) -> None:
    arguments = OURS[name]["command"]
    command = load_command(arguments[0])
    context = command.make_context(arguments[0], arguments[1:])
    for option in (a.partition("=")[0] for a in arguments[1:]):
        assert any(option in parameter.opts for parameter in command.params), option
    assert context.params


def test_images_are_pinned_and_short() -> None:
    for name, service in SERVICES.items():
        image, _, tag = service["image"].partition("@")[0].partition(":")
        assert re.fullmatch(r"[A-Za-z0-9.v-]*\d[\w.-]*", tag), f"{name}: {service['image']}"
        assert "." not in image.split("/")[0], f"{name}: the default registry, by its short name"
    for line in (INFRA / "image" / "Dockerfile").read_text().splitlines():
        if line.startswith("FROM "):
            assert re.search(r":\d+\.\d+\.\d+-", line), line


def test_images_are_pinned_by_digest_with_one_command(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    for name in ("compose.yaml", "image/Dockerfile", "image/pin.sh"):
        shutil.copy(INFRA / name, tmp_path / name)
    digest = "sha256:" + "0a" * 32
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\necho {digest}\n")
    docker.chmod(0o755)

    def pin(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}"}
        command = [str(tmp_path / "image" / "pin.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert pin("check").returncode == 1  # none has a digest
    assert pin().returncode == 0
    pinned = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"]
    for name, service in pinned.items():
        suffix = "" if name in OURS else f"@{digest}"
        assert service["image"] == SERVICES[name]["image"].partition("@")[0] + suffix
        assert {key: each for key, each in service.items() if key != "image"} == {
            key: each for key, each in SERVICES[name].items() if key != "image"
        }
    before = (INFRA / "image" / "Dockerfile").read_text().splitlines()
    after = (tmp_path / "image" / "Dockerfile").read_text().splitlines()
    changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert len(changed) == 2
    assert all(one.startswith("FROM ") and f"@{digest}" in other for one, other in changed)
    assert pin("check").returncode == 0
    docker.write_text("#!/bin/sh\necho sha256:" + "0b" * 32 + "\n")  # the tag was moved
    assert pin("check").returncode == 1


def test_mounts_secrets_networks_and_dependencies_are_there() -> None:
    example = INFRA / "secrets.example"
    for name, secret in COMPOSE["secrets"].items():
        place = Path(secret["file"])
        assert place.parent == Path("secrets")
        assert (example / place.name).is_file(), name
    assert {p.name for p in example.iterdir()} == set(COMPOSE["secrets"])
    assert "/infra/secrets/" in (ROOT / ".gitignore").read_text().split()
    volumes: set[str] = set()
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, target, *mode = mount.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (INFRA / source).is_file(), f"{name}: {source}"
                assert mode == ["ro"], f"{name}: {mount}"
            else:
                volumes.add(source)
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"]), name
        assert set(service.get("networks", ())) <= set(COMPOSE["networks"]), name
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert condition in ("service_healthy", "service_completed_successfully")
            assert other in SERVICES, f"{name} waits for {other}"
            assert ("healthcheck" in SERVICES[other]) == (condition == "service_healthy"), f"{name} waits for {other}"
        for text in re.findall(r"/run/secrets/([\w.-]+)", json.dumps(service)):
            assert text in service["secrets"], f"{name}: {text}"
    assert volumes == set(COMPOSE["volumes"])
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_containers_are_bounded_and_have_no_root() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert 0 < service["pids_limit"] <= 4096, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-file"], name
        if name == "prepare":  # gives a new volume to its owner, without network or secret, and ends
            assert (service["network_mode"], service["cap_add"], service.get("secrets")) == ("none", ["CHOWN"], None)
            assert service["restart"] == "no"
            continue
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert "healthcheck" in service or name == "bucket", name
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["user"] == "10001:10001", name
    dockerfile = (INFRA / "image" / "Dockerfile").read_text()
    assert "--uid 10001" in dockerfile
    assert "\nUSER 10001:10001\n" in dockerfile


def test_memory_limits_fit_the_processes_that_decode() -> None:
    """A decoder that reaches its own limit ends with an error; one that reaches the container's ends the worker."""
    settings = tomllib.loads((INFRA / "sightline.toml").read_text())
    decoder = settings.get("memory_bytes", Settings.model_fields["memory_bytes"].default)
    camera = settings.get("live", {}).get("memory_bytes", LiveSettings().memory_bytes)
    cameras = len(tomllib.loads((INFRA / "secrets.example" / "cameras.toml").read_text())["cameras"])
    limits = {name: _bytes(service["mem_limit"]) for name, service in SERVICES.items()}
    assert limits["consume"] >= decoder + 2 * 2**30
    assert limits["cameras"] >= camera * cameras + 2 * 2**30


def _bytes(text: str) -> int:
    return int(text[:-1]) * {"m": 2**20, "g": 2**30}[text[-1]]


def test_only_what_people_open_is_published_and_on_loopback() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"model-service": ["127.0.0.1:8080:8080"], "grafana": ["127.0.0.1:3000:3000"]}


def test_no_secret_stands_in_the_open() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if key == "AWS_ACCESS_KEY_ID":  # the name of a user
                assert value == name
            elif re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", key):
                assert key.endswith(("_FILE", "__FILE")), f"{name}: {key}"
                assert str(value).startswith("/run/secrets/"), f"{name}: {key}"


def test_no_container_has_the_credentials_of_another() -> None:
    """Root's of the object store are known to it and to the job that makes its users."""
    passwords = {name: {s for s in service.get("secrets", ()) if "password" in s} for name, service in SERVICES.items()}
    root = {name for name, held in passwords.items() if "object_password_root" in held}
    assert root == {"objects", "bucket"}
    for name, held in passwords.items():
        own = {"object_password_root"} if name == "objects" else {f"object_password_{name}", f"kafka_password_{name}"}
        if name == "bucket":
            own = {f"object_password_{path.stem}" for path in (INFRA / "objects").glob("*.json")} | {
                "object_password_root"
            }
        assert held <= own | {f"{name}_password"}, name
    for name in ("cameras", "consume", "compact", "model-service"):
        assert f"object_password_{name}" in passwords[name]
        environment = OURS[name]["environment"]
        assert environment["AWS_SECRET_ACCESS_KEY_FILE"] == f"/run/secrets/object_password_{name}"
    kafka = {name for name, service in OURS.items() if "SIGHTLINE_KAFKA_USERNAME" in service["environment"]}
    assert kafka == {"cameras", "consume"}
    entrypoint = (INFRA / "image" / "entrypoint.sh").read_text()
    for name in kafka:
        environment = OURS[name]["environment"]
        assert environment["SIGHTLINE_KAFKA_USERNAME"] == name
        assert environment["SIGHTLINE_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
        files = {key.removesuffix("_FILE") for key in environment if key.endswith(("KEY_FILE", "PASSWORD_FILE"))}
        assert files <= set(re.findall(r"[A-Z_]{8,}", entrypoint.partition("for name in")[2].partition(";")[0]))


def test_kafka_has_no_listener_without_tls_beyond_its_own_loopback() -> None:
    text = (INFRA / "kafka" / "server.properties").read_text()
    lines = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    protocols = dict(each.split(":") for each in lines["listener.security.protocol.map"].split(","))
    for listener in lines["listeners"].split(","):
        name, _, place = listener.partition("://")
        assert protocols[name] == "SASL_SSL" or place.startswith("localhost:"), listener
    for secret in re.findall(r"/run/secrets[:/](\w[\w.]*)", text):
        assert secret in SERVICES["kafka"]["secrets"]
    assert lines["advertised.listeners"].split(",")[0] == "CLIENTS://kafka:9092"


def test_prometheus_scrapes_what_is_served() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    targets: dict[str, int] = {}
    for name, job in jobs.items():
        for each in job.get("static_configs", ()):
            host, _, port = each["targets"][0].partition(":")
            targets[host] = int(port)
        for each in job.get("dns_sd_configs", ()):
            targets.update(dict.fromkeys(each["names"], each["port"]))
        if "authorization" in job:
            assert Path(job["authorization"]["credentials_file"]).name in SERVICES["prometheus"]["secrets"], name
    for host, port in targets.items():
        if host == "localhost":
            continue
        arguments = SERVICES[host]["command"]
        served = _option(arguments, "--metrics-port") or _option(arguments, "--port")
        assert served == str(port), host
        assert "inside" in SERVICES[host]["networks"]
        assert f":{port}/" in SERVICES[host]["healthcheck"]["test"][-1]
    serving = {name for name, service in OURS.items() if "port=" in " ".join(service["command"])}
    assert set(targets) == serving | {"localhost"}
    for expression in (rule["expr"] for group in RULES["groups"] for rule in group["rules"]):
        assert set(re.findall(r'job="([\w-]+)"', expression)) <= set(jobs)
    source = yaml.safe_load((INFRA / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((INFRA / "grafana/provisioning/dashboards/sightline.yaml").read_text())["providers"][0]
    mounted = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/sightline.json" in mounted


def test_the_settings_that_are_mounted_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in __import__("os").environ if name.startswith("SIGHTLINE_")]:
        monkeypatch.delenv(name)
    settings = load_settings(INFRA / "sightline.toml")
    assert settings.kafka.servers == "kafka:9092"
    bucket = settings.store.removeprefix("s3://").split("/")[0]
    assert f"objects/{bucket}\n" in (INFRA / "objects" / "setup.sh").read_text()
    kept = _option(SERVICES["cameras"]["command"], "--to")
    assert f"{kept}/" in settings.kafka.objects  # workers may fetch what cameras keep
    assert f"\nnum.partitions={settings.kafka.partitions}\n" in (INFRA / "kafka" / "server.properties").read_text()
    assert tomllib.loads((INFRA / "secrets.example" / "cameras.toml").read_text())["cameras"]


def test_what_the_image_copies_is_there_and_travels() -> None:
    lines = (INFRA / "image" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    travels = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in (word for word in copied if not word.startswith("--")):
        assert (ROOT / path).exists(), path
        assert any(path == each or path.startswith(f"{each}/") for each in travels), path


def test_the_entry_point_reads_secrets_from_files(tmp_path: Path) -> None:
    program = tmp_path / "sightline"
    program.write_text('#!/bin/sh\necho "$AWS_SECRET_ACCESS_KEY|${AWS_SECRET_ACCESS_KEY_FILE:-gone}|$*"\n')
    program.chmod(0o755)
    secret = tmp_path / "secret"
    secret.write_text("a b$c'\"\n")
    entry = ["/bin/sh", str(INFRA / "image" / "entrypoint.sh"), "streams", "two words"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "AWS_SECRET_ACCESS_KEY_FILE": str(secret)}
    done = subprocess.run(entry, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a b$c'\"|gone|streams two words\n"), done.stderr
    secret.unlink()
    done = subprocess.run(entry, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 66
    assert "cannot be read" in done.stderr
