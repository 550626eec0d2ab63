"""What finds no place makes Ray's autoscaler start nodes, here of its provider that fakes them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.services import get_node_ip_address
from served import HERE, Served, descendants, kill, title, wait
from shoal.cluster.launch import import_path
from shoal.cluster.ports import free_port

HEAD = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
STORE = {"object_store_memory": 80 << 20}
TYPES = {
    "ray.head.default": {"resources": {"CPU": 1}, "max_workers": 0},
    "worker": {"resources": {"CPU": 1, "GPU": 1, **STORE}, "max_workers": 3},
}
AUTOSCALED = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def cluster_config(address: str) -> dict[str, object]:
    """A cluster launcher's configuration, as `ray up` would hand it to the head."""
    empty = ("docker", "auth", "file_mounts")
    commands = (
        *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
        *("setup_commands", "head_setup_commands", "worker_setup_commands"),
        *("head_start_ray_commands", "worker_start_ray_commands"),
    )
    provider = {
        "type": "external",
        "module": PROVIDER,
        "gcs_address": address,
        "head_node_id": HEAD,
        "launch_multiple": True,
    }
    return {
        "cluster_name": "on-demand",
        "max_workers": 3,
        "idle_timeout_minutes": 5,
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in TYPES.items()
        },
        **{name: {} for name in empty},
        **{name: [] for name in commands},
    }


class Head:
    """The head of a cluster whose other nodes are started when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.address = f"{get_node_ip_address()}:{free_port()}"
        file = folder / "cluster.json"
        file.write_text(json.dumps(cluster_config(self.address)))
        self.temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets have short names
        line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        line += [f"--port={self.address.rpartition(':')[2]}", f"--autoscaling-config={file}"]
        line += [f"--temp-dir={self.temporary}", "--num-cpus=1", "--include-dashboard=false"]
        line += [f"--object-store-memory={STORE['object_store_memory']}"]
        path = os.pathsep.join([str(HERE), import_path()])
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.output = folder / "head"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                line,
                env=env | AUTOSCALED | {"PYTHONPATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait(lambda: "--block" in self.output.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output.read_text()

    def num_nodes(self) -> int:
        """Raylets that run."""
        return sum("raylet/raylet" in title(pid) for pid in descendants(self.process.pid))

    def end(self) -> None:
        kill(descendants(self.process.pid) | {self.process.pid})
        self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    head = Head(tmp_path)
    try:
        yield head
    finally:
        head.end()


def test_replicas_and_ranks_without_a_place_bring_nodes(
    head: Head, tmp_path: Path, tiny_model: Path
) -> None:
    models = [
        {"served_model_name": "a"},
        {
            "served_model_name": "b",
            "tensor_parallel_size": 2,
            "placement_strategy": "STRICT_SPREAD",
        },
    ]
    assert head.num_nodes() == 1
    served = Served(
        tmp_path,
        models=json.dumps([{"model": str(tiny_model), "device": "cuda", **m} for m in models]),
        ray_address=head.address,
        placement_timeout=150,
    )
    try:
        served.wait_started()
        assert head.num_nodes() == 4, "one for a replica, two for ranks that must be apart"
        assert len(served.health()["loads"]) == 2
        assert served.stream(50).numbers() == [str(i) for i in range(50)]
        served.process.terminate()
        assert served.process.wait(180) == 0
    finally:
        served.process.kill()
        served.process.wait()
