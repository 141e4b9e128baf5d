"""Dashboard, alerts, Prometheus and Compose against each other and against the code; nothing is started here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry

from ingest.live.config import LiveSettings
from ingest.live.status import CameraState, StatusRegistry
from pipeline.cli.main import load_command
from pipeline.settings import Settings, load_settings
from tests.support.tools import need

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("sightline:")}
DASHBOARD = json.loads((INFRA / "grafana" / "dashboards" / "sightline.json").read_text())
RULES = yaml.safe_load((INFRA / "prometheus" / "alerts.yml").read_text())
PROMETHEUS = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())


# ---- metrics ---------------------------------------------------------------------------------------------------------


def exported() -> dict[str, set[str]]:
    """The sample names that the code exports, each with its labels."""
    from ingest.kafka.metrics import ConsumerMetrics
    from pipeline.service.metrics import ServiceMetrics

    registries = [
        ConsumerMetrics().registry,
        ServiceMetrics(depth=lambda: 0, running=lambda: 0, capacity=1).registry,
    ]
    # Only there where a GPU is.
    names: dict[str, set[str]] = {"up": {"job", "instance"}, "sightline_gpu_memory_bytes": {"kind"}}
    for registry in registries:
        names.update(_named(registry))
    names.update(_cameras())
    names.update(_alerts())
    return names


def _named(registry: CollectorRegistry) -> dict[str, set[str]]:
    """What a registry would export with every label used once."""
    names: dict[str, set[str]] = {}
    for collector, owned in list(registry._collector_to_names.items()):
        labels = set(getattr(collector, "_labelnames", ()))
        for name in owned:
            names[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return names


def _cameras() -> dict[str, set[str]]:
    registry = StatusRegistry(Path("unused"), "watch")
    registry.add(CameraState(stream="gate", url="rtsp://h/x", newest=datetime.now(UTC)))
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        labels = {label for sample in family.samples for label in sample.labels}
        found[family.name + ("_total" if family.type == "counter" else "")] = labels
    return found


def _alerts() -> dict[str, set[str]]:
    importlib.import_module("ingest.alerts.scorer")
    return {name: labels for name, labels in _named(REGISTRY).items() if name.startswith("sightline_")}


_WORDS = {
    *(
        "abs",
        "absent",
        "and",
        "bool",
        "by",
        "count",
        "deriv",
        "group_left",
        "histogram_quantile",
        "ignoring",
        "increase",
    ),
    *("label_values", "max", "min", "offset", "on", "or", "rate", "sum", "time", "topk", "unless", "vector", "without"),
}


def used(expression: str) -> dict[str, set[str]]:
    """The metrics that an expression of PromQL names, each with the labels that its own braces name."""
    text = re.sub(r'"[^"]*"', '""', expression)
    text = re.sub(r"\[[^\]]*\]", "", text)  # ranges
    text = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", r"\1", text)  # lists of labels
    text = re.sub(r"label_values\(\s*(\w+)\s*,[^)]*\)", r"\1", text)
    found: dict[str, set[str]] = {}
    for match in re.finditer(r"(?<![\w.])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?", text):
        name, braces = match.group(1), match.group(2) or ""
        if name not in _WORDS:
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", braces))
    # What is in braces was found as a name, too.
    inside = {label for braces in re.findall(r"\{[^}]*\}", text) for label in re.findall(r"\w+", braces)}
    return {name: labels for name, labels in found.items() if name not in inside}


def grouped(expression: str) -> set[str]:
    """The labels that an expression groups by."""
    lists = re.findall(r"\bby\s*\(([^)]*)\)", expression)
    return {label.strip() for each in lists for label in each.split(",") if label.strip()}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    queries += [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    return queries + [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


def test_the_reader_of_expressions_finds_names_and_labels() -> None:
    found = used(
        'histogram_quantile(0.9, sum by (le, x) (rate(a_bucket{job=~"b|c",d!="e"}[5m]))) > on () f or vector(0)'
    )
    assert found == {"a_bucket": {"job", "d"}, "f": set()}
    assert used("label_values(sightline_x, stream)") == {"sightline_x": set()}
    assert grouped("sum by (le, x) (a) + sum by (y) (b)") == {"le", "x", "y"}


def test_every_metric_of_the_dashboard_and_the_alerts_is_exported() -> None:
    known = exported()
    of_prometheus = {"job", "instance"}
    asked: set[str] = set()
    for expression in expressions():
        names = used(expression)
        assert names, expression
        for name, labels in names.items():
            assert name in known or name == "process_resident_memory_bytes", f"{name}: nobody exports it: {expression}"
            assert labels <= known.get(name, set()) | of_prometheus, f"{labels} of {name}: {expression}"
        every = set().union(*(known.get(name, set()) for name in names)) | of_prometheus
        assert grouped(expression) <= every, expression
        asked |= names.keys()
    # And the other way round: nothing that a worker or a camera counts is left unseen.
    plain = {name for name in known if name.startswith(("sightline_consumer", "sightline_camera", "sightline_alerts"))}
    derived = ("_created", "_sum", "_count")
    series = {name for name in plain if not name.endswith(derived)}
    histograms = {name.removesuffix("_bucket") for name in plain if name.endswith("_bucket")}
    counters = {name.removesuffix("_total") for name in plain if name.endswith("_total")}
    assert series - histograms - counters - asked == set()


def test_the_dashboard_is_whole() -> None:
    variables = {v["name"] for v in DASHBOARD["templating"]["list"]}
    assert {v["name"] for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"} == {"datasource"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            known = exported()
            there = set().union(*(known.get(name, set()) for name in used(target["expr"]))) | {"job", "instance"}
            assert labels <= there, target
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert titles == ["Cameras", "Kafka to store", "Model service", "Standing questions"]


def test_every_alert_says_what_to_do() -> None:
    names = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
    assert len(set(names)) == len(names)
    for group in RULES["groups"]:
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "runbook"}
            assert all(text.endswith(".") and len(text) > 20 for text in rule["annotations"].values())
            assert rule["expr"].count("(") == rule["expr"].count(")")
            labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            known = exported()
            there = set().union(*(known.get(name, set()) for name in used(rule["expr"]))) | {"job", "instance"}
            assert labels <= (grouped(rule["expr"]) or there), rule["alert"]


def test_commands_in_runbooks_are_there() -> None:
    """A runbook may name only what there is: the command, and the options after it."""
    for text in re.findall(r"`(sightline [^`]*)`", (INFRA / "prometheus" / "alerts.yml").read_text()):
        words = text.split()[1:]
        command = load_command(words[0])
        if hasattr(command, "commands"):
            assert words[1] in command.commands, text
        else:
            options = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in words[1:] if word.startswith("--")} <= options, text


def test_promtool_agrees() -> None:
    need("promtool")
    for arguments in (("rules", "alerts.yml"), ("config", "--syntax-only", "prometheus.yml")):
        done = subprocess.run(
            ["promtool", "check", *arguments], cwd=INFRA / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_fire_on_broken_days_and_on_no_quiet_one() -> None:
    """Each rule has a day on which it fires, and each of its metrics is in the quiet day, on which none fires."""
    need("promtool")
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=INFRA / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    quiet, *broken = yaml.safe_load((INFRA / "prometheus" / "alerts_test.yml").read_text())["tests"]
    rules = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
    assert {test["name"] for test in broken} == set(rules)
    for test in broken:
        samples = [sample for each in test["promql_expr_test"] for sample in each["exp_samples"]]
        severity = rules[test["name"]]["labels"]["severity"]
        assert [s["labels"] for s in samples] == [f'{{alertname="{test["name"]}", severity="{severity}"}}']
    assert [each["exp_samples"] for each in quiet["promql_expr_test"]] == [[]]
    present = {series["series"].partition("{")[0] for series in quiet["input_series"]}
    assert set().union(*(used(rule["expr"]).keys() for rule in rules.values())) <= present


def test_alerts_reach_somebody() -> None:
    """Prometheus names the Alertmanager; its routes, receivers and inhibitions name rules and severities that exist."""
    (alertmanager,) = PROMETHEUS["alerting"]["alertmanagers"]
    assert alertmanager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["alertmanager"]["networks"])
    config = yaml.safe_load((INFRA / "prometheus" / "alertmanager.yml").read_text())
    rules = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
    receivers = {receiver["name"] for receiver in config["receivers"]}
    for route in (config["route"], *config["route"]["routes"]):
        assert route["receiver"] in receivers
    for matcher in (m for route in config["route"]["routes"] for m in route["matchers"]):
        assert matcher in {f'severity="{rule["labels"]["severity"]}"' for rule in rules.values()}
    for inhibition in config["inhibit_rules"]:
        for matcher in (*inhibition["source_matchers"], *inhibition["target_matchers"]):
            assert set(matcher.partition("=")[2].strip('~"').split("|")) <= set(rules), matcher
    for receiver in config["receivers"]:
        for webhook in receiver["webhook_configs"]:
            assert Path(webhook["url_file"]).name in SERVICES["alertmanager"]["secrets"]


def test_health_checks_are_cheap() -> None:
    """None starts a JVM, imports the product or reads the store."""
    for name, service in SERVICES.items():
        words = service.get("healthcheck", {}).get("test", [])
        assert not any(word == "sightline" or word.endswith(".sh") for word in words), name
        if "python" in words:
            assert words[words.index("python") + 1] == "-ISc", f"{name}: without the packages of the site"


# ---- Compose ---------------------------------------------------------------------------------------------------------


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
