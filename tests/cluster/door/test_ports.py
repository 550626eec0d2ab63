"""A port in use is an error with its holder and a free port."""

import os
import socket
from pathlib import Path

import pytest
from shoal.cluster.ports import check_port, free_port, holder
from shoal.engine.errors import ConfigError


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_free_port_passes_and_can_be_bound_after():
    port = free_port()
    check_port("127.0.0.1", port)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


def test_a_free_port_is_none_that_the_kernel_gives_away():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first < 12_000:
        pytest.skip("the kernel gives away nearly all ports here")
    assert all(20_000 <= free_port() < first for _ in range(20))


def test_a_port_in_use_names_its_holder_and_a_free_one(taken):
    with pytest.raises(ConfigError) as caught:
        check_port("127.0.0.1", taken)
    message = str(caught.value)
    assert str(taken) in message
    assert f"process {os.getpid()} " in message
    free = int(message.rsplit("--port ", 1)[1])
    assert free != taken
    check_port("127.0.0.1", free)
    assert caught.value.key == "port"


def test_a_port_shared_by_reuseport_is_in_use_too():
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConfigError):
            check_port("127.0.0.1", listener.getsockname()[1])


def test_all_interfaces_conflict_with_one(taken):
    with pytest.raises(ConfigError, match=str(os.getpid())):
        check_port("0.0.0.0", taken)


def test_holder_of_a_free_port_is_nobody():
    assert holder(free_port()) is None


def test_a_host_that_is_not_ours_is_named():
    with pytest.raises(ConfigError, match=r"203\.0\.113\.7"):
        check_port("203.0.113.7", 8000)
    with pytest.raises(ConfigError, match="no such host"):
        check_port("no such host", 8000)
