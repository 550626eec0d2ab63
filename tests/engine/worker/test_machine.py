"""Free memory and cores within control groups of either version, and what a device says."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from shoal.engine.config import EngineConfig
from shoal.engine.errors import ConfigError
from shoal.engine.seat import Seat
from shoal.engine.worker import device as devices
from shoal.engine.worker import worker
from shoal.engine.worker.machine import free_memory, interface_of, num_cores

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """A /proc and a /sys/fs/cgroup of 24 GiB with 20 available; `write` adds files."""

    def write(path, text):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(str(text))

    write("proc/meminfo", f"MemTotal: {24 << 20} kB\nMemAvailable: {20 << 20} kB\n")
    write("proc/self/cgroup", "")
    (tmp_path / "cgroup").mkdir()
    write.roots = (tmp_path / "proc", tmp_path / "cgroup", tmp_path / "cpu")
    return write


def test_without_control_groups_it_is_the_machine(machine):
    found = free_memory(*machine.roots[:2])
    assert (found.total, found.free, found.host) == (24 * GIB, 20 * GIB, True)
    assert num_cores(*machine.roots) == len(os.sched_getaffinity(0))


def test_version_2_and_the_tightest_ancestor(machine):
    machine("proc/self/cgroup", "0::/a/b\n")
    machine("cgroup/a/b/memory.max", "max\n")
    machine("cgroup/a/memory.max", 8 * GIB)
    machine("cgroup/a/memory.current", 3 * GIB)
    machine("cgroup/a/memory.stat", f"anon 5\ninactive_file {GIB}\n")
    machine("cgroup/a/b/cpu.max", "max 100000\n")
    machine("cgroup/a/cpu.max", "100000 100000\n")
    found = free_memory(*machine.roots[:2])
    assert (found.total, found.free) == (8 * GIB, 6 * GIB)
    assert "control group" in found.source
    assert num_cores(*machine.roots) == 1


def test_version_1_and_a_container_that_sees_itself_as_the_root(machine):
    machine("proc/self/cgroup", "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n")
    machine("cgroup/memory/memory.limit_in_bytes", 4 * GIB)
    machine("cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    machine("cgroup/memory/memory.stat", f"inactive_file 1\ntotal_inactive_file {GIB}\n")
    machine("cgroup/cpu,cpuacct/cpu.cfs_quota_us", 50_000)
    machine("cgroup/cpu,cpuacct/cpu.cfs_period_us", 100_000)
    found = free_memory(*machine.roots[:2])
    assert (found.total, found.free) == (4 * GIB, 2 * GIB)
    assert num_cores(*machine.roots) == 1


def test_version_1_without_a_limit(machine):
    machine("proc/self/cgroup", "4:memory:/\n3:cpu:/\n")
    machine("cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    machine("cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    machine("cgroup/cpu/cpu.cfs_quota_us", -1)
    machine("cgroup/cpu/cpu.cfs_period_us", 100_000)
    found = free_memory(*machine.roots[:2])
    assert (found.free, found.source) == (20 * GIB, "RAM")
    assert num_cores(*machine.roots) == len(os.sched_getaffinity(0))


def test_two_threads_of_a_core_count_once(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6})
    for cpu, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")):
        machine(f"cpu/cpu{cpu}/topology/thread_siblings_list", f"{siblings}\n")
    assert num_cores(*machine.roots) == 4
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/cpu.max", "250000 100000\n")
    assert num_cores(*machine.roots) == 2


def test_a_limit_leaves_no_more_than_the_machine_has(machine):
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/memory.max", 23 * GIB)
    machine("cgroup/memory.current", GIB)
    assert free_memory(*machine.roots[:2]).free == 20 * GIB


def test_this_machine_can_be_read():
    found = free_memory()
    assert 0 < found.free <= found.total
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


def test_threads_are_set_by_number_or_by_share():
    before = torch.get_num_threads()
    device = devices.pick("cpu")
    try:
        assert device.prepare(3, 1) == 3 == torch.get_num_threads()
        assert device.prepare(None, 1) == num_cores() == torch.get_num_threads()
        assert device.prepare(None, 1000) == 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_ranks_of_a_node_divide_its_cores_and_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(devices, "num_cores", lambda: 12)
    device, cuda = devices.pick("cpu"), devices.Device(torch.device("cuda", 0))
    near = Seat(tensor_size=2, num_stages=2, nodes=("a", "a", "a", "b"))
    before = torch.get_num_threads()
    try:
        for threads, sharers, expected in ((None, None, 4), (None, 2, 2), (8, 2, 2), (2, None, 1)):
            config = EngineConfig(threads=threads, memory_sharers=sharers)
            own = worker._shared(config, device, near)
            assert device.prepare(own.threads, own.sharers) == expected
    finally:
        torch.set_num_threads(before)
    far = dataclasses.replace(near, rank=3)
    assert worker._shared(EngineConfig(threads=8), device, far).threads == 8
    assert worker._shared(EngineConfig(threads=8), cuda, near).threads == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there():
    with pytest.raises(ConfigError, match="use device=cpu") as error:
        devices.pick("cuda")
    assert error.value.key == "device"
    assert devices.pick("auto").is_cpu


def test_an_interface_is_found_by_its_address_or_taken_by_its_name():
    assert interface_of("127.0.0.1") == interface_of("10.0.0.1", "lo") == "lo"
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 by which Ray knows it; there are .*lo"):
        interface_of("192.0.2.1")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 has no network interface 'nosuch0'"):
        interface_of("127.0.0.1", "nosuch0")


def test_other_holders_are_named_and_we_are_not():
    assert devices._holder("7, python3, 900 MiB") == "pid 7 (python3) holds 900 MiB"
    assert devices._holder("8, /a, b/x, 1 MiB") == "pid 8 (/a, b/x) holds 1 MiB"
    assert devices._holder(f"{os.getpid()}, python3, 900 MiB") is None
    assert devices._holder("") is None
