"""The plain Kubernetes manifests."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
import yaml
from shoal.cluster.resolve import configure

from .judges import DEPLOY, check_kubernetes

RESOURCES = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "shoal.yaml").read_text()))
OF = {resource["kind"]: resource for resource in RESOURCES}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda r: r["kind"])
def test_kubernetes_takes_it(resource: dict[str, Any]) -> None:
    check_kubernetes(resource)


def test_faults_are_found() -> None:
    spoiled = copy.deepcopy(OF["Deployment"])
    spoiled["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(spoiled)


def pod() -> Any:
    return OF["Deployment"]["spec"]["template"]["spec"]


def container() -> Any:
    (found,) = pod()["containers"]
    return found


def test_parts_fit_together() -> None:
    labels = OF["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert OF["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert OF["Service"]["spec"]["selector"].items() <= labels.items()
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    claim = volumes["weights"]["persistentVolumeClaim"]["claimName"]
    assert claim == OF["PersistentVolumeClaim"]["metadata"]["name"]
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    (port,) = container()["ports"]
    assert OF["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert all(
        container()[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    )


def test_loading_has_its_time_and_ranks_their_memory() -> None:
    startup = container()["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    (shared,) = [v for v in pod()["volumes"] if v["name"] == mounts["/dev/shm"]]
    assert shared["emptyDir"]["medium"] == "Memory"


def test_serve_takes_the_flags_and_ends_before_it_is_killed() -> None:
    config = configure(container()["args"], {})
    assert config.shutdown_timeout < pod()["terminationGracePeriodSeconds"]
