"""The Compose files, and nginx's."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from shoal.cluster.settings import serve_config

from .judges import DEPLOY, faults, loaded

FOLDER = DEPLOY / "compose"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "serve.yaml")
NGINX = FOLDER / "nginx.conf"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_is_a_compose_file(path: Path) -> None:
    assert faults("compose-spec", loaded(path)) == []


def test_the_schema_finds_faults() -> None:
    spoiled = loaded(FILES[0])
    spoiled["services"]["shoal"]["port"] = ["80:80"]
    assert faults("compose-spec", spoiled)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_it_names_is_there(path: Path) -> None:
    document = loaded(path)
    for service in document["services"].values():
        if "build" in service:
            root = (FOLDER / service["build"]["context"]).resolve()
            assert (root / service["build"]["dockerfile"]).is_file()
            kind = Path(service["build"]["dockerfile"]).suffix[1:]
            assert service["image"].endswith(f"-{kind}")
        for name in service.get("env_file", ()):
            assert (FOLDER / name).is_file()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in document.get("volumes", {}) or (FOLDER / source).is_file()
        for other in service.get("depends_on", ()):
            assert other in document["services"]


def shoals(path: Path) -> dict[str, Any]:
    """The services that run our image."""
    services = loaded(path)["services"].items()
    return {name: one for name, one in services if one["image"].startswith("shoal:")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_they_come_back_and_have_shared_memory_and_time_to_end(path: Path) -> None:
    for name, service in shoals(path).items():
        assert service["restart"] == ("on-failure" if name == "deploy" else "unless-stopped")
        assert service["shm_size"] == "1gb" and service["stop_grace_period"] == "60s"


def test_one_node_has_the_gpus() -> None:
    service = shoals(FOLDER / "one-node.yaml")["shoal"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_two_nodes_meet_at_the_heads_address() -> None:
    document = loaded(FOLDER / "two-nodes.yaml")
    head, worker = (document["services"][name] for name in ("head", "worker"))
    subnet = ip_network(document["networks"]["nodes"]["ipam"]["config"][0]["subnet"])
    addresses = [one["networks"]["nodes"]["ipv4_address"] for one in (head, worker)]
    assert len(set(addresses)) == 2 and all(ip_address(a) in subnet for a in addresses)
    for address, service in zip(addresses, (head, worker), strict=True):
        assert f"--node-ip-address={address}" in service["command"]
        assert service["command"][:2] == ["ray", "start"] and "--block" in service["command"]
    assert f"--address={addresses[0]}:6379" in worker["command"]
    assert f"http://{addresses[0]}:8265" in document["services"]["deploy"]["command"]


def test_flags_of_ray_start_are_flags() -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    services = loaded(FOLDER / "two-nodes.yaml")["services"]
    for name in ("head", "worker"):
        flags = {word.split("=")[0] for word in services[name]["command"][2:]}
        assert flags <= known


def test_what_the_two_nodes_serve_is_a_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    deploy = ServeDeploySchema(**loaded(FOLDER / "serve.yaml"))
    (application,) = deploy.applications
    assert application.import_path == "shoal.cluster.app:build"
    config = serve_config(application.args, {})
    assert config.host == "0.0.0.0" and config.models[0].replicas == config.gateways == 2


@pytest.mark.parametrize("name", ["one-node", "nginx"])
def test_serve_takes_the_flags(name: str) -> None:
    from shoal.cluster.resolve import configure

    command = shoals(FOLDER / f"{name}.yaml")["shoal"]["command"]
    configure([re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in command], {})


def directives(text: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Every directive of an nginx file: the blocks that it stands in, and its words.

    Fails where a block is not closed or a directive does not end.
    """
    inside: list[str] = []
    words: list[str] = []
    for token in re.findall(r'"[^"]*"|[{};]|[^\s{};]+', re.sub(r"#.*", "", text)):
        if token == "{":
            inside.append(words[0])
            words = []
        elif token in "};":
            assert (token == ";") == bool(words), f"{token} after {words}"
            if token == "}":
                inside.pop()
            else:
                yield tuple(inside), words
            words = []
        else:
            words.append(token)
    assert not inside and not words


def test_nginx_passes_streams_on() -> None:
    found = {
        (blocks[-1], words[0]): words[1:]
        for blocks, words in directives(NGINX.read_text())
        if blocks
    }
    assert found["location", "proxy_buffering"] == found["location", "gzip"] == ["off"]
    assert found["location", "proxy_http_version"] == ["1.1"]
    assert found["location", "proxy_next_upstream"] == ["off"]
    assert int(found["location", "proxy_read_timeout"][0].rstrip("s")) >= 3600
    assert found["location", "set"] == ["$shoal", "http://shoal:8000"]
    largest = int(found["server", "client_max_body_size"][0].rstrip("m")) << 20
    assert largest == serve_config({}, {}).max_body_bytes
    nginx = yaml.safe_load((FOLDER / "nginx.yaml").read_text())["services"]["nginx"]
    assert nginx["ports"][0].endswith(f":{found['server', 'listen'][0]}")


def test_an_open_block_is_found() -> None:
    with pytest.raises(AssertionError):
        list(directives("http { server { listen 80; }"))


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_nginx_takes_it(tmp_path: Path) -> None:
    done = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(NGINX)], capture_output=True, text=True
    )
    # A folder of Debian's build may be missing where nginx is not installed by root.
    assert "syntax is ok" in done.stderr, done.stderr
