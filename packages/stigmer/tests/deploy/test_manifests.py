"""deploy/kustomize: what a cluster would refuse, and what would let a cluster harm its runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import stigmer
import yaml
from stigmer import config
from stigmer.config import SETTINGS

DEPLOY = Path(__file__).parents[4] / "deploy"
OVERLAYS = ("base", "overlays/local", "overlays/prod")
COMPONENTS = (
    "kustomize/components/tls",
    "kustomize/components/keda",
    "kustomize/components/volume",
    "groups/external-secrets",
)
VERSIONS = ("1.31", kubernetes_validate.latest_version())
"""The oldest cluster that we promise, and the newest that there are schemas of."""

VARIABLES = {
    "mode": "MODE",
    "provider": "STIGMER_LLM_PROVIDER",
    "model": "STIGMER_LLM_MODEL",
    "base-url": "STIGMER_LLM_BASE_URL",
    "max-tokens": "STIGMER_LLM_MAX_TOKENS",
    "temperature": "STIGMER_LLM_TEMPERATURE",
}

everywhere = pytest.mark.parametrize("name", OVERLAYS)


@pytest.fixture
def all_components(composed: Any) -> Any:
    return composed("overlays/prod", *COMPONENTS)


# What the cluster's API would say


@everywhere
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_follows_its_schema(name: str, version: str, deployed: Any) -> None:
    for manifest in deployed(name):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_with_every_component_the_manifests_follow_their_schemas(all_components: Any) -> None:
    for manifest in all_components:
        if manifest["kind"] not in CUSTOM:
            for version in VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)


CUSTOM = {"ExternalSecret": "external-secrets.io/v1", "ScaledObject": "keda.sh/v1alpha1"}
"""Kinds of other people's operators: the validator has no schemas of them."""


def test_an_external_secret_fills_the_entries_that_pods_read(all_components: Any) -> None:
    wanted = {name: keys for name, keys in _secret_entries(all_components).items() if name != "temporal"}
    found = all_components.kind("ExternalSecret")
    assert {name: set(_keys(one)) for name, one in found.items()} == wanted
    for one in found.values():
        assert one["apiVersion"] == CUSTOM["ExternalSecret"]
        assert set(one["spec"]) == {"refreshInterval", "secretStoreRef", "target", "data"}
        assert set(one["spec"]["secretStoreRef"]) == {"kind", "name"}
        assert one["spec"]["target"] == {"name": one["metadata"]["name"], "creationPolicy": "Owner"}


def _keys(secret: Any) -> Iterator[str]:
    for entry in secret["spec"]["data"]:
        assert set(entry) == {"secretKey", "remoteRef"}
        assert set(entry["remoteRef"]) == {"key", "property"}
        yield entry["secretKey"]


def test_keda_looks_at_the_queue_of_the_group_and_scales_workers_alone(all_components: Any) -> None:
    (scaled,) = all_components.kind("ScaledObject").values()
    assert scaled["apiVersion"] == CUSTOM["ScaledObject"]
    assert scaled["spec"]["scaleTargetRef"] == {"name": "stigmer-worker"}
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == "temporal"
    group = all_components.variables()["temporal"]
    asked = trigger["metadata"]
    assert (asked["namespace"], asked["taskQueue"]) == (group["namespace"], group["task-queue"])
    assert asked["endpointFromEnv"] in {e["name"] for e in all_components.container("worker")["env"]}
    # Its values are texts, and it makes an autoscaler of its own: two of them would fight.
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert set(all_components.kind("HorizontalPodAutoscaler")) == {"stigmer-server"}


# The groups


@everywhere
def test_each_entry_of_the_group_is_its_variable_in_servers_and_workers(name: str, deployed: Any) -> None:
    manifests = deployed(name)
    assert set(manifests.variables()["stigmer-llm-config"]) == set(VARIABLES)
    known = {variable for row in SETTINGS.values() for variable in row.variables}
    assert set(VARIABLES.values()) <= known
    for component in ("server", "worker"):
        environment = {entry["name"]: entry for entry in manifests.container(component)["env"]}
        for entry, variable in VARIABLES.items():
            reference = environment[variable]["valueFrom"]["configMapKeyRef"]
            assert (reference["name"], reference["key"]) == ("stigmer-llm-config", entry)
            assert reference.get("optional", False) == (entry != "mode")
        key = environment["ANTHROPIC_API_KEY"]["valueFrom"]["secretKeyRef"]
        assert key == {"name": "anthropic", "key": "api-key", "optional": True}


def test_overlays_differ_in_where_the_model_runs(deployed: Any) -> None:
    local, prod = (
        deployed(name).variables()["stigmer-llm-config"] for name in ("overlays/local", "overlays/prod")
    )
    assert (local["mode"], local["provider"], local["base-url"]) == ("local", "ollama", "http://ollama:11434")
    assert (prod["mode"], prod["provider"], prod["base-url"]) == ("cloud", "anthropic", "")


@everywhere
def test_every_entry_that_must_be_there_is(name: str, deployed: Any) -> None:
    manifests = deployed(name)
    for manifest in manifests.pods().values():
        for reference in _references(manifest, "configMapKeyRef"):
            if not reference.get("optional"):
                assert reference["key"] in manifests.variables()[reference["name"]]


def test_every_secret_has_a_file_to_fill_in_and_no_overlay_contains_one(deployed: Any) -> None:
    files = [yaml.safe_load(path.read_text()) for path in (DEPLOY / "groups/secrets").glob("*.yaml")]
    there = {one["metadata"]["name"]: set(one["stringData"]) for one in files}
    for name in OVERLAYS:
        manifests = deployed(name)
        # Applied again, it would put its placeholder in the place of a key.
        assert not manifests.kind("Secret")
        wanted = {n: keys for n, keys in _secret_entries(manifests).items() if n != "temporal"}
        assert wanted == there
    for one in files:
        (value,) = one["stringData"].values()
        assert "PUT-THE-" in value


def _secret_entries(manifests: Any) -> dict[str, set[str]]:
    """The secrets that our pods read variables from, with their entries."""
    found: dict[str, set[str]] = {}
    for manifest in manifests.pods().values():
        for reference in _references(manifest, "secretKeyRef"):
            found.setdefault(reference["name"], set()).add(reference["key"])
    return found


def _references(pod: Any, kind: str) -> Iterator[dict[str, Any]]:
    for container in pod["spec"]["containers"]:
        for entry in container["env"]:
            if kind in entry.get("valueFrom", {}):
                yield entry["valueFrom"][kind]


def test_workers_hold_no_database_password(deployed: Any) -> None:
    for name in OVERLAYS:
        names = {entry["name"] for entry in deployed(name).container("worker")["env"]}
        assert "STIGMER_DATABASE_URL" not in names
        assert "stigmer-database" not in str(deployed(name).pods()["worker"])


# What would harm runs


@everywhere
def test_a_pod_is_given_more_time_to_end_than_it_takes(name: str, deployed: Any) -> None:
    manifests = deployed(name)
    arguments = manifests.container("worker")["args"]
    grace = float(arguments[arguments.index("--grace") + 1])
    pods = manifests.pods()
    assert pods["worker"]["spec"]["terminationGracePeriodSeconds"] >= grace + 15
    before = manifests.container("server")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pods["server"]["spec"]["terminationGracePeriodSeconds"] >= before + 15


@everywhere
def test_probes_ask_what_answers(name: str, deployed: Any) -> None:
    for component in ("server", "worker"):
        container = deployed(name).container(component)
        listens = {entry["name"]: entry.get("value") for entry in container["env"]}["STIGMER_LISTEN_HTTP"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert listens == f"0.0.0.0:{ports['http']}"
        asked = {probe: container[probe]["httpGet"] for probe in PROBES}
        assert {probe: get["path"] for probe, get in asked.items()} == PROBES
        assert {get["port"] for get in asked.values()} == {"http"}
        # A check of readiness may take two seconds.
        assert container["readinessProbe"]["timeoutSeconds"] > 2


PROBES = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def test_prometheus_is_told_where_metrics_are(deployed: Any) -> None:
    for component in ("server", "worker"):
        prod = deployed("overlays/prod")
        told = prod.pods()[component]["metadata"]["annotations"]
        (port,) = [p["containerPort"] for p in prod.container(component)["ports"] if p["name"] == "http"]
        assert told == {
            "prometheus.io/scrape": "true",
            "prometheus.io/path": "/metrics",
            "prometheus.io/port": str(port),
        }


@everywhere
def test_a_new_version_comes_before_the_old_one_goes(name: str, deployed: Any) -> None:
    for one in ("stigmer-server", "stigmer-worker"):
        strategy = deployed(name).kind("Deployment")[one]["spec"]["strategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_production_has_two_of_each_and_keeps_one(deployed: Any) -> None:
    prod = deployed("overlays/prod")
    autoscalers = prod.kind("HorizontalPodAutoscaler")
    assert set(autoscalers) == set(prod.kind("Deployment"))
    for name, autoscaler in autoscalers.items():
        assert autoscaler["spec"]["scaleTargetRef"]["name"] == name
        assert autoscaler["spec"]["minReplicas"] >= 2
        # Applying the manifests again must not send away what the autoscaler has brought.
        assert "replicas" not in prod.kind("Deployment")[name]["spec"]
    budgets = prod.kind("PodDisruptionBudget")
    assert set(budgets) == set(autoscalers)
    for name, budget in budgets.items():
        assert budget["spec"]["selector"] == prod.kind("Deployment")[name]["spec"]["selector"]


# What would let a pod harm others


@everywhere
def test_pods_keep_to_the_restricted_profile_and_write_to_their_mounts_alone(
    name: str, deployed: Any
) -> None:
    pods = deployed(name).pods()
    assert set(pods) == {"server", "worker", "migrate"}
    for component, pod in pods.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == _image_user()
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        # Else the variables of a service `ollama` or `temporal` would look like settings.
        assert spec["enableServiceLinks"] is False
        assert not any(spec.get(wide) for wide in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"))
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), component
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]), component
        assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"])


def _image_user() -> int:
    (found,) = re.findall(r"^USER (\d+):\d+$", (DEPLOY.parent / "Dockerfile").read_text(), flags=re.M)
    return int(found)


def test_the_image_is_of_this_version_and_every_pod_uses_it(deployed: Any) -> None:
    for name in OVERLAYS:
        for pod in deployed(name).pods().values():
            assert pod["spec"]["containers"][0]["image"] == f"stigmer:{stigmer.__version__}"


def test_policies_open_exactly_the_ports_that_are_there(deployed: Any) -> None:
    prod = deployed("overlays/prod")
    policies = prod.kind("NetworkPolicy")
    assert set(policies) == {f"stigmer-{component}" for component in prod.pods()}
    for component, pod in prod.pods().items():
        spec = policies[f"stigmer-{component}"]["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        labels = spec["podSelector"]["matchLabels"]
        assert labels.items() <= pod["metadata"]["labels"].items()
        opened = {port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]}
        listens = {port["containerPort"] for port in pod["spec"]["containers"][0].get("ports", ())}
        assert opened == listens
        # Nothing goes just anywhere: each way out names its ports.
        assert all(rule.get("ports") for rule in spec["egress"])
    assert 5432 in _ways_out(policies["stigmer-server"])
    assert 5432 not in _ways_out(policies["stigmer-worker"])


def _ways_out(policy: Any) -> set[int]:
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}


def test_commands_of_a_run_reach_neither_the_clouds_own_addresses_nor_the_cluster(deployed: Any) -> None:
    policy = deployed("overlays/prod").kind("NetworkPolicy")["stigmer-worker"]
    (web,) = [rule for rule in policy["spec"]["egress"] if 443 in {port["port"] for port in rule["ports"]}]
    (four, six) = [peer["ipBlock"] for peer in web["to"]]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(four["except"])
    assert {"fc00::/7", "fe80::/10"} <= set(six["except"])


# Parts that must fit each other


@everywhere
def test_services_lead_to_the_pods_that_listen(name: str, deployed: Any) -> None:
    manifests = deployed(name)
    templates = [
        one["spec"]["template"]
        for kind in ("Deployment", "StatefulSet")
        for one in manifests.kind(kind).values()
    ]
    for service in manifests.kind("Service").values():
        (pod,) = [
            t for t in templates if service["spec"]["selector"].items() <= t["metadata"]["labels"].items()
        ]
        names = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


@everywhere
def test_workers_look_for_the_service_of_the_servers(name: str, deployed: Any) -> None:
    manifests = deployed(name)
    (port,) = manifests.kind("Service")["stigmer-server"]["spec"]["ports"]
    environment = {entry["name"]: entry.get("value") for entry in manifests.container("worker")["env"]}
    assert environment["STIGMER_SERVER"] == f"http://stigmer-server:{port['port']}"
    assert "--plaintext" in manifests.container("server")["args"]


def test_with_tls_nothing_is_said_in_the_clear_and_the_servers_key_stays_there(composed: Any) -> None:
    manifests = composed("overlays/prod", "kustomize/components/tls")
    assert manifests.container("server")["args"] == ["serve"]
    server, worker = (
        {entry["name"]: entry.get("value") for entry in manifests.container(component)["env"]}
        for component in ("server", "worker")
    )
    assert worker["STIGMER_SERVER"] == "https://stigmer-server:7244"
    volumes = {
        c: {v["name"]: v for v in manifests.pods()[c]["spec"]["volumes"]} for c in ("server", "worker")
    }
    assert volumes["server"]["tls"]["secret"]["secretName"] == "stigmer-tls"
    assert [item["key"] for item in volumes["worker"]["tls"]["secret"]["items"]] == ["ca.crt"]
    for component, named in (("server", server["STIGMER_TLS_CERT"]), ("worker", worker["STIGMER_TLS_CA"])):
        (mount,) = [m for m in manifests.container(component)["volumeMounts"] if m["name"] == "tls"]
        assert Path(named).parent == Path(mount["mountPath"])
        assert mount["readOnly"] is True


def test_with_a_volume_every_worker_sees_the_same_files_and_the_server_knows_of_it(composed: Any) -> None:
    manifests = composed("overlays/prod", "kustomize/components/volume")
    (claim,) = manifests.kind("PersistentVolumeClaim").values()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for component in ("server", "worker"):
        environment = {entry["name"]: entry.get("value") for entry in manifests.container(component)["env"]}
        assert environment["STIGMER_WORKSPACE_VOLUME"] == "/workspaces"
    mounts = {m["name"]: m["mountPath"] for m in manifests.container("worker")["volumeMounts"]}
    volumes = {v["name"]: v for v in manifests.pods()["worker"]["spec"]["volumes"]}
    assert mounts["workspaces"] == "/workspaces"
    assert volumes["workspaces"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_local_overlay_brings_what_its_settings_name(deployed: Any) -> None:
    local = deployed("overlays/local")
    services = {(name, one["spec"]["ports"][0]["port"]) for name, one in local.kind("Service").items()}
    host, port = local.variables()["temporal"]["address"].split(":")
    assert (host, int(port)) in services
    assert ("ollama", 11434) in services
    assert ("postgres", 5432) in services


# What an entry that is empty or missing does


@pytest.mark.parametrize("overlay", ["local", "prod"])
@pytest.mark.parametrize("left", ["", None], ids=["empty", "missing"])
def test_an_entry_that_is_empty_or_missing_is_not_set(
    overlay: str, left: str | None, deployed: Any, cluster: Callable[..., Any]
) -> None:
    manifests = deployed(f"overlays/{overlay}")
    mode = manifests.variables()["stigmer-llm-config"]["mode"]
    entries = {"mode": mode} | ({name: "" for name in VARIABLES if name != "mode"} if left == "" else {})
    groups = {"stigmer-llm-config": entries, "temporal": {"address": "127.0.0.1:1"}}
    secrets = {
        "stigmer-database": {"url": "postgresql://nobody@127.0.0.1:1/none"},
        "stigmer-worker": {"api-key": "stk_of-nobody"},
    } | ({"anthropic": {"api-key": "sk-ant-0123456789abcdef0123"}} if mode == "cloud" else {})
    nodes = cluster(manifests, variables=groups, secrets=secrets)
    for component, where in (("server", "serve"), ("worker", "worker")):
        layer = config.layer_from_environment(nodes.container(component).environment)
        found = config.resolve([layer], config.Known(ollama=False), datetime.now(UTC), where=where)
        assert found.problems == ()
        assert (found.values["mode"].value, found.values["mode"].source) == (mode, "env MODE")
        provider = {"local": "ollama", "cloud": "anthropic"}[mode]
        for name in ("provider", "model", "base_url", "max_tokens"):
            assert found.values[name].source.startswith("default for "), name
        assert found.ref.provider == provider
