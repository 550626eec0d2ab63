"""What `shoal bench serve` refuses, before it sends a request."""

from __future__ import annotations

from typing import Any

import pytest
from shoal.cluster.cli import app
from shoal.engine.errors import ShoalError
from typer.testing import CliRunner

Server = Any


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--max-concurrency", "1,x"), "expected numbers such as 8 or 1,8,32"),
        (("--model", "other"), "serves no 'other', but: fake"),
        (("--endpoint", "talk"), "--endpoint must be completions or chat"),
        (("--endpoint", "/v1/embeddings"), "--endpoint must be completions or chat"),
        (("--backend", "tgi"), "--backend must be one of openai, vllm"),
        (("--gooput", "ttft:1"), "unknown flag --gooput: did you mean --goodput?"),
        (("--plot-timeline",), "--report FILE draws it"),
        (("--hf-subset", "x"), "hub data sets are not fetched"),
        (("--goodput", "ttft:500", "speed:3"), "--goodput knows ttft, tpot, e2el"),
        (("--goodput", "ttft"), "expected METRIC:MILLISECONDS"),
        (("--metric-percentiles", "50,200"), "expected numbers of 0 to 100"),
        (("--percentile-metrics", "ttft,speed"), "knows ttft, tpot, itl, e2el; got 'speed'"),
        (("--dataset-name", "sonnet"), "--dataset-name must be one of random, sharegpt"),
        (("--dataset-name", "custom"), "needs --dataset-path"),
        (("--dataset-name", "custom", "--dataset-path", "/nowhere"), "No such file"),
        (("--request-rate", "0"), "--request-rate must be above 0"),
        (("--burstiness", "0", "--request-rate", "1"), "--burstiness must be a number above 0"),
        (("--ramp-up-start-rps", "1"), "go together"),
        (("--extra-body", "[1]"), "must be a JSON object"),
        (("--save-result", "--metadata", "x"), "expected KEY=VALUE"),
        (("--json", "/nowhere/x.json"), "no folder /nowhere"),
        (("--port", "1"), "keep one"),
        (("--tokenizer", "/nowhere"), "--tokenizer /nowhere is no folder"),
        (("--shared-prefix-len", "500"), "cannot exceed it"),
        (("--shared-prefix-len", "-5"), "--shared-prefix-len must be at least 0, got -5"),
        (("--burstiness", "inf", "--request-rate", "1"), "--burstiness must be a number above 0"),
        (("--goodput", "ttft:inf"), "each with milliseconds above 0"),
        (
            ("--dataset-name", "multi_turn", "--think-time", "nan"),
            "--think-time must be at least 0, got nan",
        ),
        (("--think-time", "1"), "--think-time is nothing that --dataset-name random reads"),
        (("--dataset-path", "x"), "--dataset-path is nothing that --dataset-name random reads"),
        (
            ("--dataset-name", "prefix_repetition", "--shared-prefix-len", "8"),
            "--shared-prefix-len is nothing that --dataset-name prefix_repetition reads: remove "
            "it, or take a data set that does: random, multi_turn",
        ),
        (
            ("--dataset-name", "prefix_repetition", "--random-prefix-len", "8"),
            "--random-prefix-len is nothing that --dataset-name prefix_repetition reads",
        ),
        (
            ("--dataset-name", "prefix_repetition", "--input-len", "0"),
            "--input-len must be at least 1, got 0",
        ),
        (
            ("--dataset-name", "sharegpt", "--input-len", "9"),
            "--input-len is nothing that --dataset-name sharegpt reads",
        ),
        *(
            (
                ("--dataset-name", name, "--dataset-path", "x", flag, "9"),
                f"{flag} is nothing that --dataset-name {name} with --dataset-path reads",
            )
            for name in ("sharegpt", "custom", "multi_turn")
            for flag in ("--input-len", "--shared-prefix-len", "--random-prefix-len")
        ),
        (("--save-result", "--result-dir", "/dev/null"), "--result-dir /dev/null: File exists"),
        (
            ("--save-result", "--result-dir", "/", "--result-filename", "nowhere/x.json"),
            "no folder /nowhere",
        ),
        (("--input-len", "0"), "--input-len must be at least 1, got 0"),
        (("--output-len", "0"), "--output-len must be at least 1, got 0"),
        (
            ("--dataset-name", "sharegpt", "--sharegpt-output-len", "-4"),
            "--sharegpt-output-len must be at least 1, got -4",
        ),
    ],
)
def test_a_wrong_call_is_refused(server: Server, args: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "serve", "--url", server.url, *args])
    assert isinstance(result.exception, ShoalError)
    assert said in result.exception.message
    assert not server.bodies, "it is refused before the load"
