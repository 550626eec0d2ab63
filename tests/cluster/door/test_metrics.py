"""/metrics: what is counted, and Prometheus' own rules for how it is told."""

import os
import re
import shutil
import subprocess
import time

import httpx2 as httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from shoal.cluster import catalog

PROMTOOL = os.environ.get("SHOAL_PROMTOOL") or shutil.which("promtool")
RESERVED = ("_bucket", "_count", "_sum", "_created", "_info")
UNITS = r"_(ms|milliseconds|minutes|hours|us|ns|kb|mb|gb|kilobytes|megabytes|percent)(_|$)"


def figures(door):
    """The samples of one scrape: name and labels to value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(httpx.get(door.url + "/metrics").text)
        for sample in family.samples
    }


def grown(before, after, name, **labels):
    """By how much the sum of a sample over all labels but these has grown."""
    of = labels.items()
    return sum(
        value - before.get((sample, held), 0)
        for (sample, held), value in after.items()
        if sample == name and of <= held
    )


def rules_broken(text):
    """What Prometheus' rules forbid, of those that can be told from a text."""
    found = []
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found += [f"{name}: no help"] * (f"# HELP {name} " not in text)
        found += [f"{name}: type twice"] * (text.count(f"# TYPE {name} ") > 1)
        found += [f"{name}: a counter without _total"] * (
            kind == "counter" and not name.endswith("_total")
        )
        found += [f"{name}: no counter, and _total"] * (
            kind != "counter" and name.endswith("_total")
        )
        found += [f"{name}: not letters of a name"] * (not re.fullmatch("[a-z_0-9]+", name))
        found += [f"{name}: no base unit"] * bool(re.search(UNITS, name))
        reserved = kind != "histogram" and name.endswith(RESERVED[:3])
        found += [f"{name}: a histogram's ending"] * reserved
    samples = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line[:1] != "#"}
    typed = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    for sample in samples - typed:
        family = re.sub("_(bucket|count|sum)$", "", sample)
        found += [f"{sample}: no type"] * (family not in typed)
    return found


def test_prometheus_finds_nothing_in_the_native_ones(door):
    door.client().completions.create(model="scripted", prompt="the fox")
    text = httpx.get(door.url + "/metrics").text
    assert not rules_broken(text)
    assert "_created" not in text
    if PROMTOOL is not None:
        judged = subprocess.run(
            [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")


def test_the_rules_are_not_blind():
    text = "# TYPE shoal_x_ms counter\nshoal_x_ms 1\nshoal_y 2\n"
    broken = rules_broken(text)
    assert len(broken) == 4 and "shoal_y: no type" in broken


def test_every_figure_is_there_before_anything_has_happened(open_door):
    names = {sample for sample, _ in figures(open_door())}
    for family in catalog.FAMILIES:
        if family not in (catalog.HTTP, catalog.HTTP_SECONDS, catalog.SCALING):
            suffix = "_bucket" if family.buckets else "_total"
            assert f"shoal_{family.name}{suffix}" in names
    assert "shoal_num_requests_waiting_by_reason" in names and "shoal_cache_config_info" in names


def test_vllms_names_stand_beside_them_when_asked_for(open_door):
    door = open_door(vllm_metrics=True)
    door.client().completions.create(model="scripted", prompt="the fox")
    found = figures(door)
    both = [f for f in catalog.FAMILIES if f.vllm]
    for family in both:
        suffix = "_count" if family.buckets else "_total"
        native = {k[1]: v for k, v in found.items() if k[0] == f"shoal_{family.name}{suffix}"}
        vllms = {k[1]: v for k, v in found.items() if k[0] == f"vllm:{family.vllm}{suffix}"}
        assert native == vllms and native, family.name
    labels = frozenset({"engine": "0", "model_name": "scripted"}.items())
    assert ("vllm:num_requests_running", labels) in found
    assert any(name == "vllm:iteration_tokens_total_bucket" for name, _ in found)
    assert not any(name.startswith("vllm:") for name, _ in figures(open_door()))


def test_a_request_is_counted_once_in_every_way(door):
    before = figures(door)
    door.link.reply = lambda request, sibling: "hello world again"
    answer = door.client().completions.create(
        model="scripted", prompt="the fox", n=2, max_tokens=50
    )
    after = figures(door)
    of = {"model_name": "scripted", "engine": "0"}

    def more(name, **labels):
        return grown(before, after, f"shoal_{name}", **of, **labels)

    usage = answer.usage
    assert more("prompt_tokens_total") == usage.prompt_tokens
    assert more("prompt_tokens_cached_total") == door.link.num_cached
    assert more("prompt_tokens_by_source_total", source="local_cache_hit") == door.link.num_cached
    assert more("prompt_tokens_by_source_total") == usage.prompt_tokens
    assert more("generation_tokens_total") == usage.completion_tokens
    assert more("request_success_total", finished_reason="stop") == 2
    assert more("request_generation_tokens_sum") == usage.completion_tokens
    assert more("request_max_num_generation_tokens_sum") == usage.completion_tokens / 2
    assert more("request_params_n_sum") == 2 and more("request_params_max_tokens_sum") == 50
    assert more("inter_token_latency_seconds_count") == usage.completion_tokens - 2
    computed = usage.prompt_tokens - door.link.num_cached
    assert more("request_prefill_kv_computed_tokens_sum") == computed
    for name in (
        *("time_to_first_token", "request_time_per_output_token", "e2e_request_latency"),
        *("request_queue_time", "request_prefill_time", "request_decode_time"),
        "request_inference_time",
    ):
        assert more(f"{name}_seconds_count") == 1, name
        assert more(f"{name}_seconds_bucket", le="+Inf") == 1, name
    spent = [more(f"request_{part}_time_seconds_sum") for part in ("prefill", "decode")]
    assert more("request_inference_time_seconds_sum") == pytest.approx(sum(spent))


def test_an_answer_that_a_stop_string_ends_counts_as_stop(served):
    ended = served.engine.load().counters
    text = served.complete(extra_body={"ignore_eos": True}).choices[0].text
    between = figures(served)
    answer = served.complete(stop=[text[4:8]], extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "stop"
    after = figures(served)
    assert grown(between, after, "shoal_request_success_total", finished_reason="stop") == 1
    assert grown(between, after, "shoal_request_success_total") == 1

    def counted(reason):
        return served.engine.load().counters[f"finished_{reason}"] - ended[f"finished_{reason}"]

    deadline = time.monotonic() + 60
    while not counted("stop"):  # the word that nobody wants the rest is on its way
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert counted("abort") == 0


def test_the_engine_tells_what_a_request_waited_for(served):
    before = figures(served)
    served.complete(max_tokens=3)
    after = figures(served)
    for part in ("queue", "prefill"):
        name = f"shoal_request_{part}_time_seconds"
        assert grown(before, after, f"{name}_count") == 1
    prefill = grown(before, after, "shoal_request_prefill_time_seconds_sum")
    queued = grown(before, after, "shoal_request_queue_time_seconds_sum")
    to_first = grown(before, after, "shoal_time_to_first_token_seconds_sum")
    assert prefill > 0 and queued >= 0 and prefill + queued <= to_first
    steps = grown(before, after, "shoal_iteration_tokens_count")
    tokens = grown(before, after, "shoal_iteration_tokens_sum")
    assert 3 <= steps <= tokens
    info = [dict(held) for name, held in after if name == "shoal_cache_config_info"]
    assert info[0]["num_gpu_blocks"] == "1024" and int(info[0]["block_size"]) > 0


def test_a_request_that_fails_counts_as_error(door):
    before = figures(door)
    door.link.fail_after = 1
    with pytest.raises(openai.InternalServerError):
        door.client().completions.create(model="scripted", prompt="the fox")
    after = figures(door)
    assert grown(before, after, "shoal_request_success_total", finished_reason="error") == 1
