"""The figures of /metrics that are counted: names, meanings, labels, bounds.

Behind the prefix names are vLLM's, with its meanings, labels and buckets; some buckets are finer at
the low end. Where Prometheus' rules want another name than vLLM's, `vllm` has that one.
"""

from __future__ import annotations

from typing import NamedTuple

from ..engine.request import STEP_TOKENS

OF_MODEL = ("model_name", "engine")
_OF_HTTP = ("handler", "method")
_TO_FIRST_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
_N = (1.0, 2.0, 5.0, 10.0, 20.0)


class Family(NamedTuple):
    """One figure. With `buckets` it is a histogram, otherwise a counter.

    `vllm`: its name behind `vllm:`, a counter's without `_total`; None where vLLM has no such one.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]
    vllm: str | None


def _counter(name: str, help: str, *more: str) -> Family:
    return Family(name, help, (*OF_MODEL, *more), (), name)


def _histogram(name: str, help: str, buckets: tuple[float, ...], vllm: str = "") -> Family:
    return Family(name, help, OF_MODEL, buckets, vllm or name)


SUCCESS = _counter("request_success", "Requests that ended, by reason.", "finished_reason")
PROMPT = _counter("prompt_tokens", "Prompt tokens of requests that began.")
SOURCE = _counter("prompt_tokens_by_source", "Prompt tokens, by where they came from.", "source")
CACHED = _counter("prompt_tokens_cached", "Prompt tokens that the cache spared.")
GENERATED = _counter("generation_tokens", "Tokens generated.")
PREDICTED = Family(
    "prompt_tokens_cached_predicted",
    "Prompt tokens that the gateway took to be cached where it sent them.",
    OF_MODEL,
    (),
    None,
)
QUERIES = _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
HITS = _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
PREEMPTIONS = _counter("num_preemptions", "Sequences that had to give their cache back.")

TO_FIRST = _histogram("time_to_first_token_seconds", "From request to first token.", _TO_FIRST_S)
GAP = _histogram("inter_token_latency_seconds", "From a token to the next.", _PER_TOKEN_S)
PER_TOKEN = _histogram(
    "request_time_per_output_token_seconds", "Mean of a request's gaps.", _PER_TOKEN_S
)
LATENCY = _histogram("e2e_request_latency_seconds", "From request to last token.", _REQUEST_S)
QUEUE = _histogram("request_queue_time_seconds", "Waiting for a place.", _REQUEST_S)
PREFILL = _histogram("request_prefill_time_seconds", "From place to first token.", _REQUEST_S)
DECODE = _histogram("request_decode_time_seconds", "From first token to last.", _REQUEST_S)
INFERENCE = _histogram("request_inference_time_seconds", "From place to last token.", _REQUEST_S)
PROMPT_LENGTH = _histogram("request_prompt_tokens", "Prompt tokens a request.", _TOKENS)
COMPUTED_LENGTH = _histogram(
    "request_prefill_kv_computed_tokens", "Prompt tokens a request that were computed.", _TOKENS
)
LENGTH = _histogram("request_generation_tokens", "Tokens generated a request.", _TOKENS)
LONGEST = _histogram(
    "request_max_num_generation_tokens", "Tokens of a request's longest answer.", _TOKENS
)
ASKED = _histogram("request_params_max_tokens", "Most tokens that a request allows.", _TOKENS)
ANSWERS = _histogram("request_params_n", "Answers that a request asks for.", _N)
STEP = _histogram(
    "iteration_tokens",
    "Tokens computed a step.",
    tuple(map(float, STEP_TOKENS)),
    vllm="iteration_tokens_total",
)

LOST = Family(
    "failovers",
    "Replicas lost with streams under way, by cause.",
    ("model_name", "cause"),
    (),
    None,
)
MOVED = Family(
    "streams_moved",
    "Sequences that had to go on at another replica, by cause.",
    ("model_name", "cause"),
    (),
    None,
)
SCALING = Family(
    "scaling_decisions",
    "Decisions about the number of replicas, by direction; staying counts once a reason.",
    ("model_name", "direction"),
    (),
    None,
)
HTTP = Family(
    "http_requests", "HTTP requests, by route, method and status.", (*_OF_HTTP, "status"), (), None
)
HTTP_SECONDS = Family(
    "http_request_duration_seconds",
    "From an HTTP request to the end of its answer.",
    _OF_HTTP,
    _REQUEST_S,
    None,
)

FAMILIES = (
    *(SUCCESS, PROMPT, SOURCE, CACHED, PREDICTED, GENERATED, QUERIES, HITS, PREEMPTIONS),
    *(TO_FIRST, GAP, PER_TOKEN, LATENCY, QUEUE, PREFILL, DECODE, INFERENCE),
    *(PROMPT_LENGTH, COMPUTED_LENGTH, LENGTH, LONGEST, ASKED, ANSWERS, STEP),
    *(LOST, MOVED, SCALING, HTTP, HTTP_SECONDS),
)

CAUSES = ("died", "stuck", "silent", "left")
DIRECTIONS = ("up", "down", "stay")
REASONS = ("stop", "length", "abort", "error")
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
