"""`shoal bench serve` against a server whose answers are known."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from shoal.cluster.bench import stream, traffic, watch
from shoal.cluster.bench.datasets import LOWEST_ID
from shoal.cluster.cli import app
from typer.testing import CliRunner

Server = Any
ONE_TRIED = 1


def bench(server: Server, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", "bench", "serve", "--url", server.url, *args]
    environ = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)


def test_levels_of_a_closed_loop(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    shape = ["--input-len", "10", "--output-len", "5", "--shared-prefix-len", "4"]
    done = bench(
        server, "--max-concurrency", "1,4", "--num-prompts", "12", *shape, "--json", str(file)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 at once" in done.stdout and "output tokens/s" in done.stdout
    assert server.most_at_once == 4
    found = json.loads(file.read_text())
    assert found["workload"]["model"] == "fake"
    for level in found["levels"]:
        assert (level["completed"], level["failed"], level["ended_early"]) == (12, 0, 0)
        assert (level["mean_prompt_tokens"], level["mean_output_tokens"]) == (7, 5)
        assert 0 < level["ttft_ms"]["p50"] <= level["e2e_ms"]["p50"] <= level["e2e_ms"]["p99"]
    prompts = [tuple(body["prompt"]) for body in server.bodies[ONE_TRIED:]]
    assert len(prompts) == 12 + 12 + 1 + 4
    assert len(set(prompts)) == len(prompts)
    assert len({prompt[:4] for prompt in prompts}) == 1
    assert all(len(p) == 10 and min(p) >= LOWEST_ID and max(p) < 300 for p in prompts)
    assert all(body["ignore_eos"] and body["stream_options"] for body in server.bodies)


def test_failures_are_counted_and_named(server: Server, tmp_path: Path) -> None:
    server.fail_every, server.break_every = 3, 4
    file = tmp_path / "figures.json"
    sizes = ["--num-warmups", "0", "--num-prompts", "12", "--output-len", "3"]
    done = bench(server, *sizes, "--json", str(file))
    assert done.returncode == 1
    (level,) = json.loads(file.read_text())["levels"]
    assert (level["completed"], level["failed"]) == (6, 6)
    assert "429: too busy" in done.stderr
    assert "the stream ended without [DONE]" in done.stderr


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_that_lists_no_models_is_asked_for_the_one_that_is_named(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.models_status = status
    file = tmp_path / "figures.json"
    sizes = ["--num-prompts", "2", "--num-warmups", "0", "--output-len", "2"]
    unnamed = bench(server, *sizes)
    assert unnamed.returncode != 0
    assert f"answered {status}" in unnamed.stderr
    done = bench(server, *sizes, "--model", "theirs", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["model"] == "theirs"
    assert {body["model"] for body in server.bodies} == {"theirs"}


def test_chat_prompts_are_the_text_of_the_ids(server: Server) -> None:
    sizes = ["--num-warmups", "0", "--num-prompts", "2", "--input-len", "3", "--output-len", "2"]
    done = bench(server, "--endpoint", "chat", *sizes)
    assert done.returncode == 0
    for body in server.bodies[ONE_TRIED:]:
        assert len(body["messages"][0]["content"].split()) == 3


def test_text_is_made_before_the_load_begins(server: Server) -> None:
    shape = ["--dataset-name", "multi_turn", "--num-turns", "2", "--input-len", "3"]
    sizes = ["--num-prompts", "4", "--num-warmups", "0", "--output-len", "2"]
    assert bench(server, "--endpoint", "chat", *shape, *sizes).returncode == 0
    making = server.paths.count("/detokenize")
    assert making == len(server.bodies) - ONE_TRIED >= 4
    assert set(server.paths[ONE_TRIED:][:making]) == {"/detokenize"}


def test_a_server_without_detokenize_is_asked_once(server: Server, tmp_path: Path) -> None:
    server.detokenizes = False
    file = tmp_path / "figures.json"
    sizes = ["--num-prompts", "3", "--input-len", "5", "--output-len", "2", "--json", str(file)]
    done = bench(server, "--endpoint", "chat", *sizes)
    assert done.returncode == 0
    assert server.paths.count("/detokenize") == 1
    assert done.stderr.count("no /detokenize") == 1
    assert any("no /detokenize" in note for note in json.loads(file.read_text())["notes"])
    for body in server.bodies[ONE_TRIED:]:
        assert len(body["messages"][0]["content"].split()) == 5


@pytest.mark.parametrize(
    ("takes_ids", "takes_ignore_eos"), [(False, True), (True, False), (False, False)]
)
def test_a_server_is_asked_as_it_takes_it(
    server: Server, tmp_path: Path, takes_ids: bool, takes_ignore_eos: bool
) -> None:
    server.takes_ids, server.takes_ignore_eos = takes_ids, takes_ignore_eos
    file = tmp_path / "figures.json"
    sizes = ["--num-prompts", "3", "--input-len", "5", "--output-len", "2"]
    done = bench(server, "--max-concurrency", "1,2", *sizes, "--json", str(file))
    assert done.returncode == 0
    (note,) = json.loads(file.read_text())["notes"]
    assert done.stderr.count(note) == 1
    assert ("token ids as a prompt" in note, "ignore_eos" in note) == (
        not takes_ids,
        not takes_ignore_eos,
    )
    taken = [body for body in server.bodies if server.refusal("/v1/completions", body) is None]
    assert len(taken) == ONE_TRIED + 1 + 3 + 2 + 3
    assert json.loads(file.read_text())["workload"]["ignore_eos"] == takes_ignore_eos
    for body in taken[ONE_TRIED:]:
        prompt = body["prompt"] if takes_ids else body["prompt"].split()
        assert len(prompt) == 5 and ("ignore_eos" in body) == takes_ignore_eos


def test_a_refusal_of_every_form_is_one_error(server: Server) -> None:
    server.routes.remove("/v1/completions")
    done = bench(server, "--num-prompts", "9")
    assert done.returncode == 1 and len(server.bodies) == 1
    assert "404: no such route" in done.stderr and "--endpoint chat" in done.stderr
    assert "Traceback" not in done.stderr
    assert bench(server, "--backend", "openai-chat", "--num-prompts", "2").returncode == 0


def test_a_page_and_files_as_vllm_writes_them(server: Server, tmp_path: Path) -> None:
    server.gauges = 'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:num_requests_running 3\n'
    page = tmp_path / "page.html"
    sizes = ["--num-prompts", "6", "--output-len", "4", "--num-warmups", "0"]
    saving = [
        "--save-detailed",
        "--result-dir",
        str(tmp_path / "saved"),
        "--metadata",
        "a=1",
        "b=2",
    ]
    objectives = ["--goodput", "ttft:60000", "e2el:60000"]
    done = bench(server, "--report", str(page), *sizes, *saving, *objectives)
    assert done.returncode == 0
    assert "goodput, requests/s" in done.stdout and "KV cache in use, most" in done.stdout
    (file,) = (tmp_path / "saved").iterdir()
    saved = json.loads(file.read_text())
    assert (saved["a"], saved["b"], saved["completed"]) == ("1", "2", 6)
    assert saved["request_goodput"] == saved["request_throughput"]
    assert saved["median_ttft_ms"] == saved["p50_ttft_ms"] > 0
    assert saved["generated_texts"] == ["xxxx"] * 6
    assert [len(gaps) for gaps in saved["itls"]] == [3] * 6
    assert "KV cache in use" in page.read_text()


def test_one_file_holds_a_line_a_level(server: Server, tmp_path: Path) -> None:
    sizes = ["--num-prompts", "3", "--output-len", "2", "--num-warmups", "0"]
    saving = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "all.json"]
    for _ in range(2):
        done = bench(server, "--max-concurrency", "1,2", *sizes, *saving)
        assert done.returncode == 0
    saved = [json.loads(line) for line in (tmp_path / "all.json").read_text().splitlines()]
    assert [level["max_concurrency"] for level in saved] == [1, 2]


def test_an_unbounded_rate_is_told_as_it_is(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ramp = ["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "50", "--ramp-up-end-rps", "90"]
    sizes = ["--num-prompts", "3", "--output-len", "2", "--num-warmups", "0", "--json", str(file)]
    saving = ["--save-result", "--result-dir", str(tmp_path / "saved")]
    assert bench(server, *ramp, *sizes, *saving).returncode == 0
    found = json.loads(file.read_text())
    (level,) = found["levels"]
    assert level["max_concurrency"] is None
    assert level["ramp_up"] == {"strategy": "linear", "start": 50, "end": 90}
    assert "num_turns" not in found["workload"] and found["workload"]["input_len"] == 128
    assert found["workload"]["sampling"] == {"temperature": 0.0}
    (path,) = (tmp_path / "saved").iterdir()
    saved = json.loads(path.read_text())
    assert "concurrency" not in path.name
    assert (saved["ramp_up_strategy"], saved["ramp_up_end_rps"]) == ("linear", 90)


def test_every_turn_sends_the_answers_before_it(server: Server) -> None:
    shape = ["--dataset-name", "multi_turn", "--num-turns", "3", "--random-range-ratio", "0.5"]
    sizes = ["--num-prompts", "5", "--num-warmups", "0", "--input-len", "6", "--output-len", "4"]
    done = bench(server, "--backend", "openai-chat", *shape, *sizes)
    assert done.returncode == 0
    by_first: dict[str, list[Any]] = {}
    for body in server.bodies[ONE_TRIED:]:
        by_first.setdefault(body["messages"][0]["content"], []).append(body["messages"])
    assert len(by_first) == 5
    assert max(map(len, by_first.values())) > 1
    for chats in by_first.values():
        assert [len(chat) for chat in chats] == [2 * i + 1 for i in range(len(chats))]
        for before, after in pairwise(chats):
            assert after[: len(before)] == before
            said = after[len(before)]
            assert said["role"] == "assistant" and set(said["content"]) == {"x"}


def test_a_server_that_tells_no_usage(server: Server, tmp_path: Path) -> None:
    server.tells_usage = False
    file = tmp_path / "figures.json"
    sizes = ["--num-prompts", "3", "--num-warmups", "0", "--input-len", "6", "--output-len", "4"]
    done = bench(server, *sizes, "--json", str(file))
    assert done.returncode == 0
    assert "counted by chunks" in done.stderr and "EOS" not in done.stderr
    (level,) = json.loads(file.read_text())["levels"]
    assert (level["counted_by_chunks"], level["ended_early"]) == (3, 0)
    assert (level["mean_prompt_tokens"], level["mean_output_tokens"]) == (6, 4)


def test_levels_take_other_rows_of_a_file(server: Server, tmp_path: Path) -> None:
    file, found = tmp_path / "lines.jsonl", tmp_path / "figures.json"
    file.write_text("\n".join(json.dumps({"prompt": f"row {i}"}) for i in range(9)))
    data = ["--dataset-name", "custom", "--dataset-path", str(file), "--output-len", "2"]
    sizes = ["--num-prompts", "3", "--num-warmups", "1", "--json", str(found)]
    done = bench(server, "--max-concurrency", "1,2", *data, *sizes, "--vocab-size", "9")
    assert (done.returncode, done.stderr) == (0, "")
    assert len({body["prompt"] for body in server.bodies[ONE_TRIED:]}) == 8
    done = bench(server, "--max-concurrency", "1,2,3", *data, *sizes, "--vocab-size", "9")
    (note,) = json.loads(found.read_text())["notes"]
    assert (
        "3 of 12 prompts, warm-ups included, had been sent before" in note and note in done.stderr
    )


def test_the_same_level_again_asks_for_others(server: Server) -> None:
    sizes = ["--num-prompts", "2", "--num-warmups", "1", "--output-len", "2"]
    assert bench(server, "--max-concurrency", "2,2", *sizes).returncode == 0
    prompts = {tuple(body["prompt"]) for body in server.bodies[ONE_TRIED:]}
    assert len(prompts) == 6


def test_fields_of_a_request(server: Server) -> None:
    sampling = ["--top-p", "0.5", "--temperature", "0.7", "--no-ignore-eos"]
    extra = ["--extra-body", '{"min_tokens": 2}', "--header", "x-one=1", "x-two=2"]
    sizes = ["--num-prompts", "1", "--num-warmups", "0", "--output-len", "2"]
    assert bench(server, *sampling, *extra, *sizes).returncode == 0
    (body,) = server.bodies[ONE_TRIED:]
    assert (body["top_p"], body["temperature"], body["min_tokens"]) == (0.5, 0.7, 2)
    assert "ignore_eos" not in body and "top_k" not in body


def test_log_probabilities_are_asked_for_as_the_route_takes_them(server: Server) -> None:
    sizes = ["--num-prompts", "1", "--num-warmups", "0", "--output-len", "2", "--logprobs", "5"]
    assert bench(server, *sizes).returncode == 0
    assert server.bodies[-1]["logprobs"] == 5 and "top_logprobs" not in server.bodies[-1]
    assert bench(server, *sizes, "--endpoint", "chat").returncode == 0
    assert (server.bodies[-1]["logprobs"], server.bodies[-1]["top_logprobs"]) == (True, 5)


def test_no_file_holds_a_secret(server: Server, tmp_path: Path) -> None:
    sizes = ["--num-prompts", "1", "--num-warmups", "0", "--output-len", "2"]
    secrets = ["--api-key", "sk-one", "--header", "Authorization=Bearer zwei", "x=drei"]
    saving = ["--save-detailed", "--result-dir", str(tmp_path), "--label", "two words"]
    files = ["--json", str(tmp_path / "found.json"), "--report", str(tmp_path / "page.html")]
    assert bench(server, *sizes, *secrets, "--header=y=vier", *saving, *files).returncode == 0
    written = list(tmp_path.iterdir())
    assert len(written) == 3
    for file in written:
        assert not re.search(r"sk-one|zwei|drei|vier", file.read_text()), file.name
    words = shlex.split(json.loads((tmp_path / "found.json").read_text())["command"])
    assert words[words.index("--label") + 1] == "two words"
    assert words[words.index("--header") :][:4] == ["--header", "...", "...", "--header=..."]


def test_warm_connections_are_those_that_are_measured(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ENDING_S", 60.0)
    monkeypatch.setattr(traffic, "IDLE_S", 60.0)
    server.gauges = "vllm:num_requests_running 3\n"
    loads = ["--max-concurrency", "2", "--num-warmups", "2", "--num-prompts", "6"]
    line = ["bench", "serve", "--url", server.url, *loads, "--output-len", "2"]
    assert CliRunner().invoke(app, line).exit_code == 0
    assert len(server.bodies) == ONE_TRIED + 2 + 6
    assert len(server.peers) <= ONE_TRIED + 2


def test_the_load_goes_through_the_proxy_that_the_card_came_through(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    server.gauges = "vllm:num_requests_running 3\n"
    sizes = ["--num-prompts", "2", "--num-warmups", "0", "--output-len", "2"]
    line = ["bench", "serve", "--url", "http://shoal.invalid:8000", *sizes]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert len(server.bodies) == ONE_TRIED + 2 and server.num_readings


def test_a_server_that_does_not_answer_is_one_error(server: Server) -> None:
    server.hangs_up = True
    done = bench(server, "--max-concurrency", "1,2")
    assert done.returncode == 1 and len(server.bodies) == 1
    assert f"no answer began to a request of one token to {server.url}/v1/comp" in done.stderr
    assert "Traceback" not in done.stderr


def test_gauges_are_read_on_after_a_reading_that_failed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EVERY_S", 0.001)
    server.gauges, server.gauges_fail = "vllm:num_requests_running 3\n", {2}

    async def read() -> None:
        async with (
            aiohttp.ClientSession() as session,
            watch.watching(partial(session.get, f"{server.url}/metrics")) as readings,
        ):
            while len(readings) < 2:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(read(), 60))
    assert server.num_readings >= 3


def test_an_error_leaves_what_was_found(server: Server, tmp_path: Path) -> None:
    file, folder = tmp_path / "figures.json", tmp_path / "saved"

    def before(number: int) -> None:
        if number == ONE_TRIED + 2 + 1:  # the second level's first
            shutil.rmtree(folder)

    server.before = before
    sizes = ["--num-prompts", "2", "--num-warmups", "0", "--output-len", "3"]
    loads = ["--max-concurrency", "1,2,3", "--json", str(file)]
    done = bench(server, *sizes, *loads, "--save-result", "--result-dir", str(folder))
    assert done.returncode == 2 and "--result-dir" in done.stderr
    assert "1 at once" in done.stdout and "Traceback" not in done.stderr
    assert [level["max_concurrency"] for level in json.loads(file.read_text())["levels"]] == [1, 2]


def test_an_interrupt_leaves_what_was_found(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    sizes = ["--num-prompts", "2", "--num-warmups", "0", "--output-len", "3"]
    loads = ["--request-rate", "1000,0.001", "--json", str(file)]
    command = [sys.executable, "-m", "shoal", "bench", "serve", "--url", server.url]
    process = subprocess.Popen([*command, *sizes, *loads], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(server.bodies) < ONE_TRIED + 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "1000 requests/s" in told
    assert len(json.loads(file.read_text())["levels"]) == 1
