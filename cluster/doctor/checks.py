"""The examinations of a cluster: each looks at one thing and says what it found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from ... import __version__
from ...engine.config import EngineConfig
from ...engine.seat import num_ranks
from .. import nodes
from .finding import Finding
from .probe import Line, Probe, Room

ANSWER_S = 30.0
MAX_SKEW_S = 1.0
SLOW_TRIP_S = 0.002
SLOW_BYTES_PER_S = 100e6
RANK_SHARED_BYTES = 4 << 20
LITTLE_SHARED_BYTES = 64 << 20
LITTLE_DISK_BYTES = 5 << 30

Probes = Mapping[str, Any]
"""The Probe actor of each node, by its address."""


def versions(there: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """shoal, torch, Ray, Python and the driver: the same everywhere."""
    found = nodes.installed(there)
    told = [versions for versions in found.values() if isinstance(versions, dict)]
    for node, has in found.items():
        if isinstance(has, Exception):
            fix = "look into the logs of its raylet, and start its Ray again"
            yield _bad("versions", node, f"it runs no task: {_short(has)}", fix)
            continue
        if has["shoal"] != __version__:
            shown = f"shoal {has['shoal']}" if has["shoal"] else "no shoal"
            fix = f"pip install shoal=={__version__} there, where Ray's Python finds it"
            yield _bad("versions", node, f"{shown}, and {__version__} is here", fix)
            continue
        words = ", ".join(f"{name} {version}" for name, version in has.items() if version)
        usual = {n: Counter(t[n] for t in told).most_common(1)[0][0] for n in has}
        odd = [name for name in ("torch", "driver") if has[name] != usual[name]]
        if odd:
            rest = ", ".join(f"{name} {usual[name] or 'none'}" for name in odd)
            yield _odd("versions", node, words, f"other nodes have {rest}; make them the same")
        else:
            yield _fine("versions", node, words)


def clocks(probes: Probes) -> Iterator[Finding]:
    """Their skew against this process, as far as the way there lets it be known."""
    for node, probe in probes.items():
        ray.get(probe.now.remote(), timeout=ANSWER_S)
        began = time.time()
        there = ray.get(probe.now.remote(), timeout=ANSWER_S)
        ended = time.time()
        skew_s, doubt_s = there - (began + ended) / 2, (ended - began) / 2
        words = f"{skew_s:+.3f} s, known to {doubt_s:.3f} s"
        if abs(skew_s) - doubt_s > MAX_SKEW_S:
            yield _odd("clock", node, words, "let chrony or ntpd set its clock")
        else:
            yield _fine("clock", node, words)


def interfaces(probes: Probes, config: EngineConfig) -> Iterator[Finding]:
    """The one that ranks would talk over."""
    for node, probe in probes.items():
        found: dict[str, str] = ray.get(probe.interfaces.remote(), timeout=ANSWER_S)
        shown = ", ".join(f"{name} {address}" for name, address in found.items())
        wanted = config.interface
        own = [name for name, address in found.items() if address == node]
        if wanted and wanted not in found:
            fix = "leave --interface out, or name one that every node has"
            yield _bad("interface", node, f"no {wanted}; it has {shown}", fix)
        elif not wanted and not own:
            fix = "start its Ray with --node-ip-address of an interface that other nodes reach"
            yield _bad("interface", node, f"none has the address that Ray gave it: {shown}", fix)
        else:
            yield _fine("interface", node, f"{wanted or own[0]} of {shown}")


def lines(probes: Probes) -> Iterator[Finding]:
    """Latency and bandwidth between every two nodes, in both directions."""
    for one, probe in probes.items():
        for other, far in probes.items():
            if one == other and len(probes) > 1:
                continue
            pair = f"{one} > {other}"
            try:
                port = ray.get(far.listen.remote(other), timeout=ANSWER_S)
                line: Line = ray.get(probe.reach.remote(other, port), timeout=ANSWER_S)
            except Exception as error:
                fix = "let the nodes reach each other on all ports (firewall, security group)"
                yield _bad("network", pair, f"no connection: {_short(error)}", fix)
                continue
            words = f"{1e6 * line.round_trip_s:.0f} us there and back, "
            words += f"{line.bytes_per_s / 1e6:,.0f} MB/s"
            if line.round_trip_s > SLOW_TRIP_S or line.bytes_per_s < SLOW_BYTES_PER_S:
                fix = "keep the ranks of a replica on one node (tensor_parallel_size within it)"
                yield _odd("network", pair, words, fix)
            else:
                yield _fine("network", pair, words)


def shared_memory(probes: Probes, config: EngineConfig) -> Iterator[Finding]:
    """Ranks of one node hand each other their pieces in it."""
    ranks = num_ranks(config)
    needed = RANK_SHARED_BYTES * ranks if ranks > 1 else 0
    for node, probe in probes.items():
        room: Room | None = ray.get(probe.shared_memory.remote(), timeout=ANSWER_S)
        if room is None:
            yield _odd("shared memory", node, "no /dev/shm", "mount a tmpfs there")
            continue
        words = f"{_size(room.free)} of {_size(room.total)} free, {_size(needed)} needed"
        fix = "make /dev/shm larger (docker run --shm-size=1g)"
        if room.free < needed:
            yield _bad("shared memory", node, words, fix)
        elif room.total <= LITTLE_SHARED_BYTES:
            yield _odd("shared memory", node, words, fix)
        else:
            yield _fine("shared memory", node, words)


def disks(probes: Probes, config: EngineConfig) -> Iterator[Finding]:
    """Room for Ray's session and for models."""
    for node, probe in probes.items():
        for room in ray.get(probe.disks.remote(config), timeout=ANSWER_S):
            words = f"{room.path}: {_size(room.free)} of {_size(room.total)} free"
            if room.free < LITTLE_DISK_BYTES:
                yield _odd("disk", node, words, "free some, or set --download-dir")
            else:
                yield _fine("disk", node, words)


def checkpoints(probes: Probes, config: EngineConfig) -> Iterator[Finding]:
    """The model's files, the same on every node."""
    folder_like = config.model.startswith(("/", "."))
    found = {
        node: ray.get(probe.checkpoint.remote(config), timeout=ANSWER_S)
        for node, probe in probes.items()
    }
    sizes = [tuple(sorted(files.items())) for files in found.values() if files]
    usual = Counter(sizes).most_common(1)[0][0] if sizes else ()
    for node, files in found.items():
        if not files and folder_like:
            fix = "copy it to the same place on every node, or serve it by its hub name"
            yield _bad("checkpoint", node, f"no {config.model}", fix)
        elif not files:
            fix = f"it is fetched at the first start; `shoal pull {config.model}` there saves that"
            yield _odd("checkpoint", node, f"{config.model} is not in the cache", fix)
        elif tuple(sorted(files.items())) != usual:
            fix = "copy it again from a node that serves it well"
            yield _bad("checkpoint", node, "other files than on other nodes", fix)
        elif why := ray.get(probes[node].misfit.remote(config), timeout=ANSWER_S):
            fix = "set tensor_parallel_size and pipeline_parallel_size to what it can be cut into"
            yield _bad("checkpoint", node, why, fix)
        else:
            words = f"{config.model}, {len(files)} files, {_size(sum(files.values()))}"
            yield _fine("checkpoint", node, words)


def start_probes(there: Sequence[Mapping[str, Any]]) -> Probes:
    """A Probe on each node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = {}
    for node in there:
        at = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        actor = ray.remote(Probe).options(num_cpus=0, scheduling_strategy=at).remote()
        made[nodes.address(node)] = actor
    return made


def _fine(check: str, node: str, words: str) -> Finding:
    return Finding(check=check, node=node, level="ok", words=words)


def _odd(check: str, node: str, words: str, fix: str) -> Finding:
    return Finding(check=check, node=node, level="warning", words=words, fix=fix)


def _bad(check: str, node: str, words: str, fix: str) -> Finding:
    return Finding(check=check, node=node, level="failure", words=words, fix=fix)


def _short(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return said[-1].strip() if said else type(error).__name__


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
