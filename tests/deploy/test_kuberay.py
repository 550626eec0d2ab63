"""`shoal k8s`, and the RayService that lies in deploy/kuberay."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from shoal.cluster.config import ServeConfig
from shoal.cluster.ray_variables import ON_EVERY_NODE, ON_THE_HEAD
from shoal.cluster.rayservice import Target, rayservice, settings
from shoal.cluster.resolve import configure
from shoal.cluster.settings import serve_config
from shoal.engine.errors import ConfigError

from .judges import DEPLOY, ROOT, check_rayservice, env_of, faults, loaded, templates

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def printed(*args: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "shoal", "k8s", *args], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def of(target: Target | None = None, **keys: object) -> Any:
    return rayservice(serve_config({"model": "Qwen/Qwen3-0.6B", **keys}, {}), target or Target())


def groups(resource: Any) -> list[tuple[int, int]]:
    """Pods and GPUs of each, group by group."""
    found = []
    for group in resource["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        found.append((group["replicas"], int(limits.get("nvidia.com/gpu", 0))))
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_ready_configuration_becomes_a_rayservice(path: Path) -> None:
    check_rayservice(printed(str(path)))


def test_the_file_in_the_tree_is_what_is_printed() -> None:
    path = DEPLOY / "kuberay" / "rayservice.yaml"
    command = next(line for line in path.read_text().splitlines() if "shoal k8s " in line)
    args = command.partition("shoal k8s ")[2].split()
    assert loaded(path) == printed(*[a.replace("configs/", f"{ROOT}/configs/") for a in args])


def test_serve_makes_the_same_configuration_of_it() -> None:
    given = {
        "models": [
            {"model": "a/b", "replicas": 2, "tensor-parallel-size": 2, "served-model-name": ["x"]},
            {"model": "shoal-tiny", "dtype": "float32"},
        ],
        "port": 9000,
        "max-model-len": "8k",
        "gateways": 2,
        "allowed-origins": ["*"],
    }
    config = serve_config(given, {})
    (application,) = yaml.safe_load(rayservice(config, Target())["spec"]["serveConfigV2"])[
        "applications"
    ]
    again = serve_config(application["args"], {})
    asked = [(m.engine.device, m.ray_actor_options) for m in again.models]
    assert asked == [("cuda", None), ("auto", {"num_cpus": 4})], "a pod each"
    engines = [dataclasses.replace(m.engine, device="auto") for m in again.models]
    models = tuple(
        m.model_copy(update={"engine": engine, "ray_actor_options": None})
        for m, engine in zip(again.models, engines, strict=True)
    )
    expected = config.model_copy(update={"host": "0.0.0.0"})
    assert again.model_copy(update={"models": models}) == expected


def test_pods_of_a_model_that_scales_come_and_go() -> None:
    scaling = {"min_replicas": 0, "max_replicas": 4}
    resource = of(**{"autoscaling": scaling, "replicas": 2, "tensor-parallel-size": 16})
    check_rayservice(resource)
    cluster = resource["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (application,) = yaml.safe_load(resource["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["autoscaling"] == scaling
    assert cluster["enableInTreeAutoscaling"] is True
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 4, 8)
    assert "enableInTreeAutoscaling" not in of()["spec"]["rayClusterConfig"]
    with pytest.raises(ConfigError, match=r"give autoscaling\.max_replicas"):
        of(replicas="auto")


def test_replicas_ask_for_a_pod_each_unless_they_are_told_otherwise() -> None:
    def options(**keys: object) -> object:
        (application,) = yaml.safe_load(of(**keys)["spec"]["serveConfigV2"])["applications"]
        return application["args"].get("ray-actor-options")

    assert options() == {"num_gpus": 1}
    assert options(**{"ray-actor-options": {"num_gpus": 0.5}}) == {"num_gpus": 0.5}
    assert options(device="cpu") == {"num_cpus": 4}
    assert options(**{"tensor-parallel-size": 2}) is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_settings_are_as_short_as_the_file(path: Path) -> None:
    if path.name == "serve-deploy.yaml":
        return
    config = configure(["--config", str(path)], {})
    written = {key.replace("_", "-") for key in loaded(path)}
    assert {*settings(config)} <= written | {"model"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({}, [(1, 1)], id="one"),
        pytest.param({"replicas": 3}, [(3, 1)], id="replicas"),
        pytest.param({"tensor-parallel-size": 4, "replicas": 2}, [(2, 4)], id="ranks"),
        pytest.param(
            {"tensor-parallel-size": 2, "pipeline-parallel-size": 2}, [(1, 4)], id="a node"
        ),
        pytest.param(
            {"tensor-parallel-size": 8, "pipeline-parallel-size": 2}, [(2, 8)], id="a stage a node"
        ),
        pytest.param({"tensor-parallel-size": 16}, [(2, 8)], id="a stage on two nodes"),
        pytest.param({"device": "cpu", "replicas": 2}, [(2, 0)], id="no GPUs"),
    ],
)
def test_gpus_follow_from_ranks(keys: dict[str, object], expected: list[tuple[int, int]]) -> None:
    assert groups(of(**keys)) == expected


def test_each_model_has_a_group() -> None:
    models = [{"model": "a/one", "tensor-parallel-size": 2}, {"model": "b/one", "device": "cpu"}]
    resource = rayservice(serve_config({"models": models}, {}), Target())
    check_rayservice(resource)
    assert groups(resource) == [(1, 2), (1, 0)]
    names = [g["groupName"] for g in resource["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
    assert names == ["one", "one-2"]


def test_what_is_asked_for_is_there() -> None:
    target = Target(
        image="registry.example/shoal:1",
        namespace="models",
        service_type="LoadBalancer",
        api_key_secret="keys",
        hf_token_secret="hub",
        weights_claim="weights",
        gpu_resource="amd.com/gpu",
    )
    resource = of(target, port=9000)
    check_rayservice(resource)
    assert resource["metadata"] == {"name": "shoal", "namespace": "models"}
    service = resource["spec"]["serveService"]["spec"]
    assert service["type"] == "LoadBalancer" and service["ports"][0]["port"] == 9000
    for template in templates(resource):
        (container,) = template["spec"]["containers"]
        assert container["image"] == target.image
        secrets = {e["name"]: e["valueFrom"] for e in container["env"] if "valueFrom" in e}
        assert secrets["SHOAL_API_KEY"] == {"secretKeyRef": {"name": "keys", "key": "api-key"}}
        assert secrets["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
        assert {"persistentVolumeClaim": {"claimName": "weights"}, "name": "weights"} in (
            template["spec"]["volumes"]
        )
    assert container["resources"]["limits"]["amd.com/gpu"] == "1"


def test_pods_have_rays_variables_and_the_head_keeps_its_state() -> None:
    head, worker = (template["spec"] for template in templates(of()))
    assert ON_EVERY_NODE.items() <= env_of(worker["containers"][0]).items()
    assert (ON_EVERY_NODE | ON_THE_HEAD).items() <= env_of(head["containers"][0]).items()
    mounts = {m["mountPath"] for m in head["containers"][0]["volumeMounts"]}
    assert ON_THE_HEAD["RAY_gcs_storage_path"] in mounts


def test_workers_are_ready_where_the_gateway_says_so() -> None:
    _, worker = templates(of(**{"ssl-certfile": "/tls/crt", "ssl-keyfile": "/tls/key"}))
    probe = worker["spec"]["containers"][0]["readinessProbe"]
    assert probe["httpGet"] == {"path": "/-/healthz", "port": "serve", "scheme": "HTTPS"}


def test_a_key_is_not_printed() -> None:
    with pytest.raises(ConfigError, match="--api-key-secret"):
        of(api_key=["hidden"])
    resource = of(Target(api_key_secret="keys"), api_key=["hidden"])
    assert "hidden" not in str(resource)


def test_a_wrong_service_type_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shoal", "k8s", str(CONFIGS[0]), "--service-type", "Public"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "LoadBalancer" in done.stderr


def test_neither_ray_nor_torch_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['shoal', 'k8s', sys.argv[1]]\n"
        "from shoal.cluster.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(CONFIGS[0])], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r["spec"].update(serveConfig="x"),
        lambda r: r["spec"]["rayClusterConfig"].pop("headGroupSpec"),
        lambda r: r["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda r: r["spec"]["rayClusterConfig"]["headGroupSpec"].update(rayStartParams={"x": 1}),
        lambda r: r["metadata"].update(name="Upper"),
    ],
)
def test_the_schema_finds_faults(spoil: Any) -> None:
    resource = of()
    spoil(resource)
    assert faults("rayservice", resource)


def test_a_long_name_is_cut() -> None:
    config: ServeConfig = serve_config({"model": "a", "name": "My_Very " + "long" * 20}, {})
    check_rayservice(rayservice(config, Target()))
