"""The comparison with peers: its arithmetic, its contract, and shoal's own side for real."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from shoal.cluster.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ROOT / "benchmarks/shapes/qwen3-0.6b"


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_both_sides_get_the_same_prompts() -> None:
    cells = module("cells")
    cell = cells.Cell(3, 64, 60)
    prompts = cell.prompts(0, 1000)
    assert prompts == cell.prompts(0, 1000)
    assert [len(prompt) for prompt in prompts] == [64] * 3
    later = cell.prompts(1, 1000)
    assert {tuple(prompt[:60]) for prompt in prompts + later} == {tuple(prompts[0][:60])}
    assert len({tuple(prompt) for prompt in prompts + later}) == 6
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)
    assert max(map(max, cells.Cell(2, 8).prompts(0, 10))) < 10


def test_the_grid_has_the_shared_prefixes_last() -> None:
    cells = module("cells").grid([1, 8], [128, 1024], 64, True)
    assert [(c.streams, c.input_len, c.shared) for c in cells] == [
        *((1, 128, 0), (8, 128, 0), (1, 1024, 0), (8, 1024, 0)),
        *((1, 128, 120), (8, 128, 120), (1, 1024, 960), (8, 1024, 960)),
    ]
    assert len(module("cells").grid([1], [128], 64, False)) == 1


def test_the_figures_of_a_cell() -> None:
    cells = module("cells")
    assert [cells.Cell(n, 128).num_warm for n in (1, 32, 64)] == [1, 32, 64]
    assert [cells.Cell(n, 1024).num_warm for n in (1, 32, 64)] == [1, 8, 8]
    found = cells.figures([[0.5, 1.0, 1.5], [1.0, 2.0, 3.0]], 3)
    assert found["output_tokens_per_s"] == 2.0
    assert (found["ttft_ms"], found["ttft_last_ms"], found["tpot_ms"]) == (750, 1000, 750)
    assert cells.middle([{"a": 1.0}, {"a": 3.0}, {"a": 2.0}]) == {"a": 2.0}


def test_the_roof_of_a_shape() -> None:
    roof = module("roof")
    shape = roof.Shape.read(SHAPE)
    layer = 1024 * (2 * 2048 + 2 * 1024 + 3 * 3072)
    assert shape.weights == 28 * layer + 1024 * 151_936
    assert shape.kv_bytes == 28 * 2 * 8 * 128 * 2
    slow = roof.Roof(bytes_per_s=1e10, flops_per_s=1e15)
    one = roof.need(slow, shape, streams=1, input_len=128, shared=0, output_len=65)
    assert one.bound == "memory"
    weights_s = 64 * 2 * shape.weights / 1e10
    assert one.seconds == pytest.approx(weights_s, rel=0.05) and one.seconds > weights_s
    dull = roof.Roof(bytes_per_s=1e15, flops_per_s=1e11)
    many = roof.need(dull, shape, streams=8, input_len=128, shared=0, output_len=2)
    assert many.bound == "arithmetic of prompts"
    half = roof.need(dull, shape, streams=8, input_len=128, shared=64, output_len=2)
    assert 0.4 < half.prefill_s / many.prefill_s < 0.6
    decoding = roof.need(dull, shape, streams=8, input_len=8, shared=0, output_len=64)
    assert decoding.bound == "arithmetic of decoding"


def test_the_readme_has_the_rows_of_the_results() -> None:
    found = json.loads((ROOT / "benchmarks/results/peers-cpu.json").read_text())
    readme = (ROOT / "benchmarks/README.md").read_text().splitlines()
    told = [line for line in readme if re.match(r"\| \d+ \| [\d,]+.* tokens/s \|", line)]
    rows = [module("report").lines(entry["cells"]) for entry in found["peers"].values()]
    assert len(told) == sum(map(len, rows))
    for of_a_peer in rows:
        at = told.index(of_a_peer[0])
        assert told[at : at + len(of_a_peer)] == of_a_peer


def test_a_probe_finds_a_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module("roof"), "FLOATS", 1 << 20)
    found = module("roof").probe("cpu", 1)
    assert found.bytes_per_s > 1e8 and found.flops_per_s > 1e8


def test_every_peer_keeps_the_contract() -> None:
    contract, compare = module("contract"), module("compare")
    assert set(compare.PEERS) == {"openvino", "llamacpp", "transformers", "vllm", "sglang"}
    for name, peer in compare.PEERS.items():
        for device in ("cpu", "cuda"):
            if device in peer.devices:
                peer.check(device)
            else:
                with pytest.raises(contract.Refused, match=f"{name} is measured on"):
                    peer.check(device)
        for device in peer.devices:
            words = peer.command(launch_on(device))
            assert words[0].startswith("/env/bin/")
            keeps_the_contract(peer, device, words)
    for over, shoal in module("peer_shoal").SIDES.items():
        assert shoal.over == over
        for device in shoal.devices:
            keeps_the_contract(shoal, device, shoal.command(launch_on(device)))


def launch_on(device: str) -> Any:
    contract = module("contract")
    return contract.Launch(
        environment=contract.Environment(Path("/env")),
        model=Path("/model"),
        device=device,
        threads=2,
        port=1234,
    )


SHARE_FLAGS = ("--gpu-memory-utilization", "--mem-fraction-static")


def keeps_the_contract(peer: Any, device: str, words: list[str]) -> None:
    """One that is asked over HTTP has all limits in its command, a driver in its options."""
    contract = module("contract")
    if peer.over != contract.HTTP:
        options = json.loads(words[-1])
        assert (options["model"], options["device"]) == ("/model", device)
        assert Path(words[1]).is_file()
        return
    pairs = set(pairwise(words))
    assert "/model" in words and ("--port", "1234") in pairs and ("--dtype", "bfloat16") in pairs
    shares = {value for flag, value in pairs if flag in SHARE_FLAGS}
    assert shares == ({str(contract.GPU_SHARE)} if device == "cuda" else set())


def test_vllm_is_given_as_many_processors_as_shoal(tmp_path: Path) -> None:
    contract, vllm = module("contract"), module("peer_vllm").PEER
    own = sorted(os.sched_getaffinity(0))
    launch = contract.Launch(
        environment=contract.Environment(tmp_path),
        model=Path("/model"),
        device="cpu",
        threads=len(own),
        port=1234,
    )
    told = vllm.variables(launch)
    assert told["VLLM_CPU_OMP_THREADS_BIND"] == ",".join(map(str, own))
    assert told["VLLM_CPU_KVCACHE_SPACE"] == str(launch.kv_gib) and "LD_PRELOAD" not in told
    openmp = tmp_path / "lib" / "libiomp5.so"
    openmp.parent.mkdir()
    openmp.touch()
    assert vllm.variables(launch)["LD_PRELOAD"] == str(openmp)


def test_a_gpu_is_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    compare = module("compare")
    monkeypatch.setattr(compare.shutil, "which", lambda name: None)
    for line, said in (
        (["--device", "cuda"], "needs an NVIDIA GPU"),
        (["nobody"], "unknown peer 'nobody'"),
    ):
        monkeypatch.setattr(sys, "argv", ["compare.py", *line])
        with pytest.raises(SystemExit):
            compare.arguments()
        assert said in capsys.readouterr().err


def test_the_common_beginning_that_llama_cpp_copies() -> None:
    common = module("peer_llamacpp")._common
    base = list(range(100))
    assert common([base, [*base, 1], [*base, 2]]) == 99
    assert common([[*base[:50], 7], base, base[:60]]) == 50
    assert common([[*base[:20], 7], base]) == 0
    assert common([[], base]) == 0


def test_the_tokenizer_knows_every_id(tmp_path: Path) -> None:
    checkpoint = module("checkpoint")
    (tmp_path / "config.json").write_text('{"vocab_size": 20000}')
    checkpoint._tokenizer(tmp_path)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 20000
    assert tokenizer.decode([5000, 6000]).isascii()
    assert len(tokenizer.encode("a little cat").ids) < 12


@pytest.fixture(scope="module")
def tiny() -> Path:
    from shoal.cluster.config import bundled_model

    return bundled_model()


def test_shoal_in_its_process_and_the_report(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    sides, shoal, contract = module("sides"), module("peer_shoal"), module("contract")
    cells, report = module("cells"), module("report")
    launch = contract.Launch(
        environment=contract.Environment(tmp_path),
        model=tiny,
        device="cpu",
        threads=1,
        port=0,
        max_len=256,
        max_streams=4,
    )
    peer = shoal.SIDES[contract.IN_PROCESS]
    cell = cells.Cell(2, 16, 8, 4)
    with sides.started(peer, launch, tmp_path / "log") as (side, _):
        arrivals = side.run(cell.prompts(0, 2048), 4)
        assert [len(times) for times in arrivals] == [4, 4]
        assert all(times == sorted(times) and times[0] > 0 for times in arrivals)
        with pytest.raises(contract.Refused, match="Context"):
            side.run([list(range(16, 516))], 4)
        again = side.run(cell.prompts(1, 2048), 4)
    figures = cells.figures(arrivals, 4) | {"share_of_roof": 0.5}
    report.report(
        {
            "machine": "here",
            "shape": "s",
            "dtype": "bfloat16",
            "date": "today",
            "command": "compare.py",
            "kernels": "native",
            "roof": {"bytes_per_s": 1e10, "flops_per_s": 1e12},
            "peers": {
                "itself": {
                    "over": "in process",
                    "version": "1",
                    "error": None,
                    "cells": [
                        {
                            "cell": cells.described(cell),
                            "bound": "memory",
                            "idle_before": 1.0,
                            "shoal": figures,
                            "peer": cells.figures(again, 4) | {"share_of_roof": 0.5},
                        }
                    ],
                },
                "absent": {"over": "http", "cells": [], "error": "no GPU"},
            },
        }
    )
    told = capsys.readouterr().out
    assert "| 2 x 16 (8) " in told and "not measured: no GPU" in told


def test_a_server_is_asked_for_all_prompts_at_once(tiny: Path, tmp_path: Path) -> None:
    sides, shoal, contract = module("sides"), module("peer_shoal"), module("contract")
    launch = contract.Launch(
        environment=contract.Environment(tmp_path),
        model=tiny,
        device="cpu",
        threads=1,
        port=free_port(),
        max_len=256,
        max_streams=4,
    )
    peer = shoal.SIDES[contract.HTTP]
    without_ray = replace(peer, command=lambda launch: [*peer.command(launch), "--local"])
    with sides.started(without_ray, launch, tmp_path / "log") as (side, _):
        arrivals = side.run([[7, 8, 9], [10, 11]], 4)
        assert [len(times) for times in arrivals] == [4, 4]
        with sides.stopped(side):
            stat = Path(f"/proc/{side.process.pid}/stat")
            while stat.read_text().rpartition(") ")[2][0] != "T":
                time.sleep(0.01)
        assert len(side.run([[7, 8, 9]], 2)[0]) == 2
        with pytest.raises(contract.Refused, match="context"):
            side.run([list(range(16, 516))], 4)


def test_a_side_that_ends_is_told_of(tmp_path: Path) -> None:
    sides, contract = module("sides"), module("contract")
    peer = contract.Peer(
        name="broken",
        distribution="x",
        devices=("cpu",),
        over=contract.IN_PROCESS,
        install=lambda environment, device: None,
        command=lambda launch: [sys.executable, "-c", "import sys; sys.exit('no such chip')"],
    )
    launch = contract.Launch(
        environment=contract.Environment(tmp_path),
        model=tmp_path,
        device="cpu",
        threads=1,
        port=0,
    )
    with (
        pytest.raises(contract.Refused, match="no such chip"),
        sides.started(peer, launch, tmp_path / "log"),
    ):
        pass


def test_help_of_every_script() -> None:
    for script in ("memory.py", "naive.py", "growth.py", "peers/compare.py", "peers/roof.py"):
        command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "usage" in done.stdout, script
