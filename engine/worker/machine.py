"""What this process may use of the machine: free memory and cores within its control groups."""

from __future__ import annotations

import fcntl
import math
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError
from ..sizing import Memory

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_SIOCGIFADDR = 0x8915


def free_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> Memory:
    """Memory that can be had without swapping, within the tightest control group (v1 and v2)."""
    total, free = _machine(proc)
    machine_total = total
    source = "RAM"
    for group in _groups("memory", proc, cgroup):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit is None or limit >= machine_total:
            continue
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        left = max(0, limit - used + _reclaimable(group))
        if left < free:
            free, source = left, "RAM within the control group's limit"
        total = min(total, limit)
    return Memory(total=total, free=free, source=source)


def num_cores(proc: Path = _PROC, cgroup: Path = _CGROUP, cpus: Path = _CPUS) -> int:
    """Cores that this process may keep busy: its affinity, within the tightest CPU quota.

    Two threads of one core count once: they share what multiplies and what reads memory.
    """
    cores = float(_affinity(cpus))
    for group in _groups("cpu", proc, cgroup):
        quota, period = _quota(group)
        if quota > 0 and period > 0:
            cores = min(cores, quota / period)
    return max(1, math.floor(cores))


def limit_threads(threads: int) -> None:
    """State how many threads libraries may start; takes effect where torch is not imported yet."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def let_threads_sleep() -> None:
    """Make OpenMP's threads spin for microseconds, not milliseconds, before they sleep.

    libgomp reads this once, when torch is loaded. Beside busy neighbours its default makes a step
    of a small model ten times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def interface_of(address: str, wanted: str | None = None) -> str:
    """The network interface that has this address, or the one wanted. Raises ConfigError where
    this node has none such.
    """
    names = [name for _, name in socket.if_nameindex()]
    if wanted:
        if wanted in names:
            return wanted
        why = f"interface: {address} has no network interface {wanted!r}"
        raise ConfigError(f"{why}; it has {', '.join(names)}", "interface")
    for name, found in addresses():
        if found == address:
            return name
    raise ConfigError(
        f"no network interface of this node has the address {address} by which Ray knows it; "
        f"there are {', '.join(names)}: name one with --interface",
        "interface",
    )


def addresses() -> Iterator[tuple[str, str]]:
    """The network interfaces that have an IPv4 address, and that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            query = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, query)
            except OSError:
                continue  # it has no address
            yield name, socket.inet_ntoa(answer[20:24])


def _affinity(cpus: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_core(cpu, cpus) for cpu in os.sched_getaffinity(0)})


def _core(cpu: int, cpus: Path) -> str:
    """The hardware threads of this one's core, or itself where that is not said."""
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _machine(proc: Path) -> tuple[int, int]:
    """Total and available bytes of the machine."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        return total, total // 2
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    return values["MemTotal"], values["MemAvailable"]


def _groups(controller: str, proc: Path, cgroup: Path) -> Iterator[Path]:
    """This process's group for a controller and every group above it, in v2 and in v1.

    Inside a container the path is often that of the host: the groups that exist are what counts.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if not names:
            roots = [cgroup, cgroup / "unified"]
        elif controller in names.split(","):
            roots = [cgroup / controller, cgroup / names]
        else:
            continue
        for root in roots:
            group = root / path.lstrip("/")
            while group != root:
                yield group
                group = group.parent
            yield root


def _reclaimable(group: Path) -> int:
    """Page cache that the kernel gives back before it refuses memory."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(None, 1) for line in lines)
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _quota(group: Path) -> tuple[int, int]:
    """CPU time a period, and the period, in microseconds; (0, 0) where there is no bound."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return (0, 0) if quota == "max" else (int(quota), int(period))
    except (OSError, ValueError):
        quota_us = _number(group / "cpu.cfs_quota_us")
        return quota_us or 0, _number(group / "cpu.cfs_period_us") or 0


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none (`max` is none)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
