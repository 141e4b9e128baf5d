"""The Helm chart: rendered by Helm's engine, against the schemas of Kubernetes and KEDA, the settings and the commands.

`infra/helm/tools.sh fetch` installs the engine and the schemas. No cluster is started here. After a change of the chart
`UPDATE_GOLDEN=1 pytest tests/infra/test_helm.py` writes the golden file anew.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from ingest.decoding.limits import Decoder
from pipeline.cli.main import load_command
from pipeline.service.guard import PUBLIC_PATHS as SERVICE_PATHS
from pipeline.settings import Settings, load_settings
from pipeline.web.guard import PUBLIC_PATHS
from tests.support.tools import need

ROOT = Path(__file__).parents[2]
HELM = ROOT / "infra" / "helm"
CHART = HELM / "sightline"
GOLDEN = Path(__file__).parent / "helm" / "defaults.yaml"
KUBERNETES = ("1.34", "1.37")
COMPONENTS = ("consume", "compact", "desk", "model-service")
OTHER: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0a" * 32, "pullSecrets": ["registry"]},
    "settings": '[retention."*"]\ndays = 30\n',
    "objectStore": {"endpoint": "http://objects:9000", "allowHttp": True, "secrets": {"consume": ""}},
    "kafka": {"securityProtocol": "PLAINTEXT"},
    "decoder": {"memoryBytes": 6 * 2**30, "requireSandbox": False},
    "consume": {
        "gpus": 1,
        "decoder": "gpu",
        "replicas": 3,
        "decoders": 3,
        "commitSeconds": 0.5,
        "keda": {"enabled": False},
    },
    "modelService": {"gpus": 1},
    "desk": {"admin": {"passwordSecret": ""}, "ingress": {"enabled": True, "className": "nginx"}},
    "serviceAccounts": {"annotations": {"consume": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/consume"}}},
    "networkPolicy": {"metricsFrom": [], "deskTo": [{"ports": [{"protocol": "TCP", "port": 443}]}]},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "video", "operator": "Exists"}],
    "gpuNodes": {"nodeSelector": {"nvidia.com/gpu.present": "true"}},
}

Object = dict[str, Any]


@pytest.fixture(scope="module")
def tools() -> Iterator[None]:
    """Helm's engine and the schemas, importable."""
    need("helm")
    place = str(ROOT / ".tools" / "helm")
    sys.path.append(place)
    yield
    sys.path.remove(place)


def render(values: Object | None = None) -> list[Object]:
    """The objects of a release `site` in the namespace `video`, in the order of their files."""
    chart = importlib.import_module("helm_python.chart").Chart.load(CHART)
    files: dict[str, str] = chart.render(values, name="site", namespace="video")
    texts = [files[name] for name in sorted(files) if name.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


@pytest.fixture(scope="module", params=["defaults", "other"])
def objects(request: pytest.FixtureRequest, tools: None) -> list[Object]:
    """The objects of the default values, and of values that differ from them wherever a template has a branch."""
    return render(None if request.param == "defaults" else OTHER)


def pods(objects: list[Object]) -> dict[str, Object]:
    """The pod template of each component."""
    found = {}
    for each in objects:
        if each["kind"] in ("Deployment", "CronJob"):
            spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
            found[each["metadata"]["labels"]["app.kubernetes.io/component"]] = spec["template"]
    return found


def containers(template: Object) -> list[Object]:
    """All containers of a pod."""
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def select(objects: list[Object], kind: str, component: str) -> Object:
    """The one object of a kind and a component."""
    label = "app.kubernetes.io/component"
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["labels"][label] == component)
    return found


def test_lint_finds_nothing_but_the_missing_icon(tools: None) -> None:
    for values in (None, OTHER):
        report = importlib.import_module("helm_python.chart").lint(CHART, values, strict=True)
        assert report["errors"] == []
        assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


def test_the_default_release_is_the_golden_file(tools: None) -> None:
    text = "# Written by tests/infra/test_helm.py with UPDATE_GOLDEN=1.\n" + yaml.safe_dump_all(render(), width=1000)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_objects_fit_the_schemas_of_kubernetes_and_keda(objects: list[Object]) -> None:
    kubernetes = importlib.import_module("kubernetes_validate")
    jsonschema = importlib.import_module("jsonschema")
    keda = _keda()
    for each in objects:
        if each["apiVersion"] == "keda.sh/v1alpha1":
            jsonschema.Draft202012Validator(keda[each["kind"]]).validate(each)
        else:
            for version in KUBERNETES:
                kubernetes.validate(each, version, strict=True)


def _keda() -> dict[str, Any]:
    """The schema of each kind of KEDA."""
    found = {}
    for path in (HELM / "schemas").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        found[definition["names"]["kind"]] = _closed(definition["versions"][0]["schema"]["openAPIV3Schema"])
    return found


def _closed(schema: Any) -> Any:
    """The schema, refusing names that it does not know, as an API server warns of them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and schema["properties"]:
        closed.setdefault("additionalProperties", False)
    if set(schema.get("properties", ())) >= {"apiVersion", "kind"}:
        closed["properties"]["metadata"] = {"type": "object"}
    return closed


def test_a_wrong_name_is_refused_by_the_schemas(tools: None) -> None:
    """The validators see a mistake, so that the test above is one."""
    kubernetes = importlib.import_module("kubernetes_validate")
    wrong = select(render(), "Deployment", "consume")
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(wrong, KUBERNETES[0], strict=True)
    scaled = select(render(), "ScaledObject", "consume")
    scaled["spec"]["maxReplicas"] = 8  # it is maxReplicaCount
    jsonschema = importlib.import_module("jsonschema")
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.Draft202012Validator(_keda()["ScaledObject"]).validate(scaled)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"consume": {"replica": 2}}, "replica"),
        ({"store": "/var/store"}, "store"),
        ({"networkPolicy": {"kafka": {"to": []}}}, "to"),  # no peers would mean all
        ({"consume": {"keda": {"maxReplicas": 9}}}, "partitions"),
        ({"decoder": {"memoryBytes": 1}}, "memoryBytes"),
        ({"consume": {"decoder": "nvdec", "gpus": 1}}, "decoder"),
        ({"consume": {"decoder": "gpu-only"}}, "consume.gpus is 0"),
    ],
)
def test_wrong_values_are_refused(tools: None, values: Object, what: str) -> None:
    with pytest.raises(importlib.import_module("helm_python.errors").HelmError, match=what):
        render(values)


def test_pods_are_restricted(objects: list[Object]) -> None:
    """Kubernetes' Pod Security Standard `restricted`, and beyond it."""
    assert set(pods(objects)) == set(COMPONENTS)
    for component, template in pods(objects).items():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False  # else SIGHTLINE_…_SERVICE_HOST, which is no setting
        assert spec["serviceAccountName"] == f"site-sightline-{component}"
        assert select(objects, "ServiceAccount", component)["automountServiceAccountToken"] is False
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for volume in spec["volumes"]:
            assert set(volume) & {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, volume
            assert volume.get("emptyDir", {"sizeLimit": 1})["sizeLimit"], volume
        for container in containers(template):
            own = container["securityContext"]
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec["volumes"]}
            assert {"/tmp", "/var/lib/sightline"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_memory_limits_fit_the_processes_that_decode(objects: list[Object]) -> None:
    """A decoder that reaches its own limit ends with an error; one that reaches the container's ends the worker."""
    for component, template in pods(objects).items():
        variables = _variables(template["spec"]["containers"][0])
        decoders = {"consume": int(variables.get("SIGHTLINE_CONSUME_DECODERS", 0)), "desk": 1}.get(component, 0)
        limit = int(template["spec"]["containers"][0]["resources"]["limits"]["memory"])
        assert limit >= decoders * int(variables["SIGHTLINE_MEMORY_BYTES"]) + 2 * 2**30, component


def _variables(container: Object) -> dict[str, str]:
    return {each["name"]: each.get("value", "reference") for each in container["env"]}


def test_settings_and_commands_are_those_of_the_code(
    objects: list[Object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sightline.toml"
    file.write_text(select(objects, "ConfigMap", "settings")["data"]["sightline.toml"])
    entrypoint = (ROOT / "infra" / "image" / "entrypoint.sh").read_text()
    from_files = set(re.findall(r"[A-Z_]{8,}", entrypoint.partition("for name in")[2].partition(";")[0]))
    for component, template in pods(objects).items():
        for container in containers(template):
            settings = _load(_variables(container), from_files, file, monkeypatch)
            assert settings.store == "s3://sightline/store"
            if component == "consume":
                assert settings.kafka.objects == ("s3://sightline/segments/",)
                assert settings.kafka.partitions == 8
        container = template["spec"]["containers"][0]
        command, *arguments = container["args"]
        assert command == {"desk": "serve"}.get(component, component)
        context = load_command(command).make_context(command, list(arguments))
        assert context.params
        if component == "desk":
            assert (
                context.params["service"]
                == f"http://{select(objects, 'Service', 'model-service')['metadata']['name']}:8080"
            )


def _load(variables: dict[str, str], from_files: set[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a container, as its entry point sets them."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SIGHTLINE_")]:
            patch.delenv(name)
        for name, value in variables.items():
            bare = name.removesuffix("_FILE")
            patch.setenv(bare if bare in from_files else name, value)
        return load_settings(file)


def test_only_pods_with_a_gpu_go_to_nodes_with_one(tools: None) -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    for values, with_gpu in ((None, set()), (OTHER, {"consume", "model-service"})):
        for component, template in pods(render(values)).items():
            spec = template["spec"]
            limits = [container["resources"]["limits"].get("nvidia.com/gpu") for container in spec["containers"]]
            assert limits == [1 if component in with_gpu else None], component
            assert (taint in spec.get("tolerations", ())) == (component in with_gpu), component
            selector = {} if values is None else dict(values["nodeSelector"])
            if component in with_gpu:
                selector |= OTHER["gpuNodes"]["nodeSelector"]
            assert spec.get("nodeSelector", {}) == selector, component


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_workers_decode_where_the_value_says(tools: None, decoder: str) -> None:
    """Only a container that asks for `video` gets the driver's library of NVDEC."""
    gpu = decoder != "software"
    objects = render({"consume": {"decoder": decoder, "gpus": int(gpu)}})
    for component, template in pods(objects).items():
        variables = _variables(template["spec"]["containers"][0])
        here = component == "consume"
        assert variables.get("SIGHTLINE_DECODER") == (decoder if here else None)
        assert ("video" in variables.get("NVIDIA_DRIVER_CAPABILITIES", "").split(",")) == (here and gpu)


def test_probes_ask_what_the_processes_serve(objects: list[Object]) -> None:
    served = {
        "consume": {"/metrics"},
        "model-service": {"/readyz"} & SERVICE_PATHS,
        "desk": {"/healthz"} & PUBLIC_PATHS,
    }
    for component, paths in served.items():
        (container,) = pods(objects)[component]["spec"]["containers"]
        (port,) = container["ports"]
        assert any(f"port={port['containerPort']}" in argument for argument in container["args"])
        kinds = {"startupProbe", "livenessProbe"} | ({"readinessProbe"} if component != "consume" else set())
        for kind in kinds:
            assert container[kind]["httpGet"]["path"] in paths
            assert container[kind]["httpGet"]["port"] == port["name"]


def test_secrets_are_references(objects: list[Object]) -> None:
    assert not [each for each in objects if each["kind"] == "Secret"]
    for template in pods(objects).values():
        volumes = {volume["name"] for volume in template["spec"]["volumes"] if "secret" in volume}
        for container in containers(template):
            folders = {m["mountPath"] for m in container["volumeMounts"] if m["name"] in volumes}
            for name in _variables(container):
                if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", name):
                    assert name.endswith("_FILE"), name
            for path in re.findall(r"/run/secrets/\w+", json.dumps([container.get("args"), container["env"]])):
                assert path in folders, path


def test_disruptions_leave_a_replica_and_do_not_block_a_drain(objects: list[Object]) -> None:
    for component in ("consume", "model-service", "desk"):
        budget = select(objects, "PodDisruptionBudget", component)["spec"]
        labels = pods(objects)[component]["metadata"]["labels"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert select(objects, "Deployment", "model-service")["spec"]["replicas"] >= 2
    assert select(objects, "Service", "model-service")["spec"]["sessionAffinity"] == "None"
    assert select(objects, "CronJob", "compact")["spec"]["concurrencyPolicy"] == "Forbid"


def test_everything_is_denied_but_what_is_listed(objects: list[Object]) -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "NetworkPolicy"}
    base = policies["site-sightline"]
    assert base["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in base
    assert {port["port"] for rule in base["egress"] for port in rule["ports"]} == {53}
    for template in pods(objects).values():
        assert base["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    for name, policy in policies.items():
        for rule in policy.get("ingress", ()):
            assert rule["from"], name  # an empty list would mean everybody
            assert rule["ports"], name
        for rule in policy.get("egress", ()):
            assert rule["ports"], name
            assert rule.get("to") or name == "site-sightline-desk", name
    callers = policies["site-sightline-model-service"]["ingress"][0]["from"]
    assert pods(objects)["desk"]["metadata"]["labels"].items() >= callers[0]["podSelector"]["matchLabels"].items()


def test_workers_scale_by_the_lag_of_their_group(tools: None) -> None:
    objects = render()
    scaled = select(objects, "ScaledObject", "consume")["spec"]
    deployment = select(objects, "Deployment", "consume")
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # KEDA's; a second owner would fight with it at each upgrade
    (trigger,) = scaled["triggers"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert f"--group={trigger['metadata']['consumerGroup']}" in container["args"]
    variables = _variables(container)
    assert trigger["metadata"]["topic"] == f"{variables['SIGHTLINE_KAFKA_PREFIX']}.segments"
    assert trigger["metadata"]["bootstrapServers"] == variables["SIGHTLINE_KAFKA_SERVERS"]
    assert scaled["maxReplicaCount"] <= int(variables["SIGHTLINE_KAFKA_PARTITIONS"])
    authentication = select(objects, "TriggerAuthentication", "consume")
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert {each["parameter"] for each in authentication["spec"]["secretTargetRef"]} == {"username", "password", "ca"}
    without = render(OTHER)
    assert not [each for each in without if each["apiVersion"].startswith("keda")]
    assert select(without, "Deployment", "consume")["spec"]["replicas"] == 3
