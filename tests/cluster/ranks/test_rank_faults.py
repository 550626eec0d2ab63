"""Ranks that are killed, stopped, mistaken or without a place, and executors that vanish."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal.cluster import placement
from shoal.cluster.ray_executor import RayExecutor
from shoal.engine.config import EngineConfig
from shoal.engine.engine import AsyncEngine
from shoal.engine.errors import ConfigError, EngineLost, LoadError, WorkerLost, WorkerSilent
from shoal.engine.request import Request, SamplingParams

LONG = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come to an executor before its ranks do."""
    from shoal.cluster import ray_executor

    plain = ray_executor._listen

    def with_strangers(*args: Any) -> Any:
        made = plain(*args)

        class Wrapped:
            def __enter__(self) -> Any:
                listener, address = made.__enter__()
                for words in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b""):
                    stranger = socket.socket(socket.AF_UNIX)
                    stranger.connect(address)
                    stranger.sendall(words)
                    stranger.close()
                return listener, address

            def __exit__(self, *error: object) -> Any:
                return made.__exit__(*error)

        return Wrapped()

    monkeypatch.setattr(ray_executor, "_listen", with_strangers)


@pytest.fixture
def engine(
    strangers: None, ray_here: None, uneven_model: Path, engine_of: Callable[..., Any]
) -> Iterator[Any]:
    """Its ranks came all the same, and the strangers were hung up on."""
    made = engine_of(uneven_model, tensor_parallel_size=2, stall_timeout=5.0)
    yield made
    made.executor.close()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_killed_rank_is_named_and_takes_the_others_along(
    engine: Any, until: Callable[..., None]
) -> None:
    pids = [rank.pid for rank in engine.executor.ranks()]
    engine.loop.add(Request(id="a", prompt=(5, 6), params=LONG))
    engine.loop.step()
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(
        WorkerLost, match=rf"rank 1 \(node 127.0.0.1, pid {pids[1]}\) ended"
    ) as lost:
        while True:
            engine.loop.step()
    assert "rank 0" in str(lost.value)
    until(lambda: all(map(gone, pids)))


def test_an_idle_engine_hears_that_a_rank_is_gone(
    ray_here: None, uneven_model: Path, until: Callable[..., None]
) -> None:
    config = EngineConfig(
        model=str(uneven_model),
        tensor_parallel_size=2,
        num_gpu_blocks_override=40,
        max_model_len=128,
    )
    engine = AsyncEngine(config)
    engine.start()
    try:
        executor: Any = engine.executor
        os.kill(executor.ranks()[0].pid, signal.SIGKILL)

        def lost() -> bool:
            try:
                engine.load()
            except EngineLost as error:
                return "rank 0" in str(error)
            return False

        until(lost)
    finally:
        engine.close()


def test_a_stopped_rank_is_found_by_its_silence(engine: Any, until: Callable[..., None]) -> None:
    pids = [rank.pid for rank in engine.executor.ranks()]
    engine.loop.add(Request(id="a", prompt=(5, 6), params=LONG))
    engine.loop.step()
    os.kill(pids[0], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(WorkerSilent, match=rf"rank 0 .*pid {pids[0]}\) is silent: at step"):
        while True:
            engine.loop.step()
    assert time.monotonic() - began >= 5.0  # not before its time
    until(lambda: all(map(gone, pids)))


def test_ranks_that_never_met_leave_no_file(
    ray_here: None,
    uneven_model: Path,
    engine_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shoal.cluster import ray_executor

    plain, meetings = ray_executor.Seat, []

    def seat(**values: Any) -> Any:
        meetings.append(Path(values["meeting"]))
        assert meetings[-1].parent.is_dir()
        return plain(**values)

    monkeypatch.setattr(ray_executor, "Seat", seat)
    with pytest.raises(ConfigError, match="tensor_parallel_size=3 cannot cut the model's 4"):
        engine_of(uneven_model, tensor_parallel_size=3)
    assert len(meetings) == 3 and not meetings[0].parent.exists()


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("_join", r"rank 0 .* did not come to its executor"),
        ("_load", r"rank 0 .* opened no meeting"),
    ],
)
def test_a_rank_that_dies_before_it_loads_ends_the_start(
    phase: str,
    said: str,
    ray_here: None,
    uneven_model: Path,
    engine_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    plain, pids = getattr(RayExecutor, phase), []

    def bereft(executor: RayExecutor, given: Any) -> Any:
        pids.extend(rank.place.pid for rank in executor._ranks)
        if phase == "_join":
            pids.extend(place.pid for _, place in given)
        os.kill(pids[0], signal.SIGKILL)
        return plain(executor, given)

    monkeypatch.setattr(RayExecutor, phase, bereft)
    with pytest.raises(WorkerLost, match=said):
        engine_of(uneven_model, tensor_parallel_size=2)
    until(lambda: all(map(gone, pids)))


def test_an_executor_that_dies_takes_its_ranks_along(
    uneven_model: Path, until: Callable[..., None]
) -> None:
    script = (
        "import sys, time\n"
        "from shoal import LLM\n"
        "llm = LLM(sys.argv[1], tokenizer=sys.argv[2],"
        " tensor_parallel_size=2, max_model_len=128, num_gpu_blocks_override=40)\n"
        "ranks = llm._engine.executor.ranks()\n"
        "print(*[rank.pid for rank in ranks], flush=True)\n"
        "time.sleep(100)\n"
    )
    tiny = Path(__file__).resolve().parents[3] / "configs" / "tiny"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(uneven_model), str(tiny)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        assert len(pids) == 2
        child.kill()
        until(lambda: all(map(gone, pids)))
    finally:
        child.kill()
        child.wait()


def test_what_a_rank_refuses_is_refused(
    ray_here: None, uneven_model: Path, engine_of: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="pipeline_parallel_size=5 is more than the model's 4"):
        engine_of(uneven_model, pipeline_parallel_size=5)
    with pytest.raises(LoadError, match=re.escape(str(tmp_path))):
        engine_of(tmp_path, tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="no network interface 'nosuch0'; it has"):
        engine_of(uneven_model, tensor_parallel_size=2, interface="nosuch0")


def test_ranks_without_a_place_are_refused_with_what_is_free(ray_here: None) -> None:
    with pytest.raises(ConfigError, match=r"asked for 2 bundles of 500 CPU; .* has \d+ CPU"):
        placement.reserve([{"CPU": 500.0}] * 2, "PACK", timeout_s=0.5)


def test_more_ranks_than_gpus_is_refused(ray_here: None) -> None:
    config = EngineConfig(model="m", tensor_parallel_size=4, device="cuda")
    with pytest.raises(ConfigError, match="needs 4 GPUs, and 0 are visible"):
        placement.check_enough(config, placement.wants_gpus(config))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "tensor_parallel_size=3 cannot cut the model's 4 q_proj heads"),
        ({"device": "cuda"}, "needs 3 GPUs, and 2 are visible"),
    ],
)
def test_what_is_known_beforehand_is_refused_before_ray_is_started(
    keys: dict[str, Any],
    said: str,
    uneven_model: Path,
    engine_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shoal.cluster import ray_executor

    def started() -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(ray_executor, "starts_own", lambda: True)
    monkeypatch.setattr(ray_executor, "shared_ray", started)
    monkeypatch.setattr(placement, "gpus_here", lambda: 2 if keys else 0)
    with pytest.raises(ConfigError, match=said):
        engine_of(uneven_model, tensor_parallel_size=3, **keys)


def test_a_group_that_was_made_for_something_else_is_let_be(
    ray_here: None,
    uneven_model: Path,
    engine_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    group = placement.reserve([{"CPU": 0.3}] * 3, "PACK")
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: group)
    try:
        engine = engine_of(uneven_model, tensor_parallel_size=2)
        engine.executor.close()
    finally:
        ray.util.remove_placement_group(group)


@pytest.mark.parametrize(("width", "stages", "sharers"), [(3, 1, 2), (7, 1, 1), (2, 3, 5)])
def test_ranks_of_all_replicas_of_a_node_ask_for_one_core(
    width: int, stages: int, sharers: int
) -> None:
    config = EngineConfig(
        model="m",
        tensor_parallel_size=width,
        pipeline_parallel_size=stages,
        memory_sharers=sharers,
    )
    asked = sum(bundle["CPU"] for bundle in placement.bundles(config, gpus=False))
    assert 0.9 < sharers * asked <= 1
