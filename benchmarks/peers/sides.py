"""One side of a comparison, started and asked: a server over HTTP, or a driver in its process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from contract import HTTP, Launch, Peer, Refused, environ
from shoal.cluster.bench.talks import once
from shoal.cluster.bench.traffic import Level, drive
from shoal.cluster.direct import direct_opener

START_S = 900.0
ANSWER_S = 900.0
POLL_S = 0.2

Arrivals = list[list[float]]
"""Of each prompt the seconds after the beginning at which its tokens came, those with output."""


class Side(Protocol):
    """Runs prompts at once, `output_len` tokens each. Raises Refused.

    `process` is the first of its processes, which are a group.
    """

    process: subprocess.Popen[str]

    def run(self, prompts: list[list[int]], output_len: int) -> Arrivals: ...


@contextlib.contextmanager
def stopped(side: Side) -> Iterator[None]:
    """Inside, none of the side's processes gets any time."""
    os.killpg(side.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(side.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def started(peer: Peer, launch: Launch, log: Path) -> Iterator[tuple[Side, float]]:
    """The side, ready, and the seconds that took. Raises Refused when it does not start."""
    own = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")} if peer.name == "shoal" else {}
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            peer.command(launch),
            stdin=subprocess.PIPE,
            stdout=output if peer.over == HTTP else subprocess.PIPE,
            stderr=output,
            env=environ(**peer.variables(launch), **own),
            start_new_session=True,
            text=True,
        )
        try:
            side: Side
            if peer.over == HTTP:
                side = Server(peer.name, f"http://127.0.0.1:{launch.port}", process, log)
            else:
                side = Driver(peer.name, process, log)
            yield side, time.monotonic() - begin
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End it with all its processes: a driver by the end of its input, a server by a signal."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    for act, wait_s in ((None, 5 if process.stdout else 0), (process.terminate, 45)):
        if act is not None and process.poll() is None:
            act()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Server:
    """An OpenAI-compatible server, asked for completions of token ids."""

    def __init__(self, name: str, url: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name, self.url, self.process = name, url, process
        until = time.monotonic() + START_S
        while not self._ready():
            if process.poll() is not None or time.monotonic() > until:
                raise Refused(f"{self.name} did not start:\n{_end_of(log)}")
            time.sleep(POLL_S)
        with direct_opener().open(f"{url}/v1/models", timeout=30) as answer:
            self.model = json.load(answer)["data"][0]["id"]

    def _ready(self) -> bool:
        try:
            with direct_opener().open(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def run(self, prompts: list[list[int]], output_len: int) -> Arrivals:
        """See Side."""
        common = {"model": self.model, "max_tokens": output_len, "ignore_eos": True}
        common |= {"temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}
        talks = [once(json.dumps({**common, "prompt": prompt}).encode()) for prompt in prompts]
        headers = {"Content-Type": "application/json"}
        level = Level(concurrency=len(talks))
        url = f"{self.url}/v1/completions"
        run = asyncio.run(drive(url, level, talks, headers=headers, timeout_s=ANSWER_S))
        errors = [record.error for record in run.records if record.error]
        if errors:
            raise Refused(f"{self.name}: {errors[0]}")
        if short := [r for r in run.records if r.num_output != output_len]:
            raise Refused(f"{self.name}: {len(short)} answers had not {output_len} tokens")
        begin = min(record.begin for record in run.records)
        return [[at - begin for at in record.arrivals] for record in run.records]


class Driver:
    """A process that reads batches and tells when tokens came; see driving.py."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name, self.process, self._log = name, process, log
        self._read(START_S)

    def run(self, prompts: list[list[int]], output_len: int) -> Arrivals:
        """See Side."""
        line = json.dumps({"prompts": prompts, "output_len": output_len})
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the read says how it ended
            stdin.write(line + "\n")
            stdin.flush()
        told = self._read(ANSWER_S)
        if "error" in told:
            raise Refused(f"{self.name}: {told['error']}")
        if any(len(times) != output_len for times in told["arrivals"]):
            raise Refused(f"{self.name}: answers had not {output_len} tokens")
        arrivals: Arrivals = told["arrivals"]
        return arrivals

    def _read(self, wait_s: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], wait_s)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            said = "ended" if ready else f"was silent for {wait_s:g} s"
            raise Refused(f"the process of {self.name} {said}:\n{_end_of(self._log)}")
        told: dict[str, Any] = json.loads(line)
        return told


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
