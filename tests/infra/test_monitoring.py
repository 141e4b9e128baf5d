"""Dashboard, alerts and Prometheus against each other and against the code; nothing is started here."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import REGISTRY, CollectorRegistry

from ingest.live.status import CameraState, StatusRegistry
from pipeline.cli.main import load_command
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
