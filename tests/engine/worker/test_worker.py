"""Real checkpoints through worker, executor, scheduler and loop, against transformers."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shoal.engine.config import EngineConfig
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.errors import ConfigError, LoadError, WorkerLost
from shoal.engine.local import LocalExecutor
from shoal.engine.loop import Loop
from shoal.engine.request import FinishReason, Request, SamplingParams
from shoal.engine.worker.device import Device
from shoal.engine.worker.worker import Worker, forecast
from shoal.kernels.cpu.bindings import Pool, loaded
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

VOCAB, POISON = 128, 77
WORTH_WAKING = 1 << 18
WINDOWED = "Qwen2 with a window in its upper layer"
ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM", WINDOWED)


def windowed_qwen2():
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=2,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=1,
        architectures=["Qwen2ForCausalLM"],
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, random_model):
    """A model whose logits are well apart."""
    if request.param == WINDOWED:
        model = windowed_qwen2()
    else:
        model = AutoModelForCausalLM.from_pretrained(random_model(request.param)).float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    found = tmp_path_factory.mktemp("well")
    model.save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def poisoned(model, folder, tmp_path_factory):
    """The same checkpoint, but token 77 is embedded as NaN."""
    found = tmp_path_factory.mktemp("poisoned")
    weight = model.get_input_embeddings().weight
    kept = weight[POISON].clone()
    with torch.no_grad():
        weight[POISON] = torch.nan
        model.save_pretrained(found)
        weight[POISON] = kept
    return found


@pytest.fixture(scope="module")
def twin(folder):
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found.generation_config.eos_token_id = None
    return found


class Engine:
    """An engine without a door: requests in, everything that came of them out."""

    def __init__(self, folder, **config):
        values = {"max_num_seqs": 20, "block_size": 8, "max_model_len": 128, "threads": 1}
        self.config = EngineConfig(model=str(folder), **values | config)
        self.executor = LocalExecutor(self.config)
        self.capacity = self.executor.start(self.config)
        scheduler = Scheduler(self.config, self.capacity, depth=self.executor.depth)
        self.loop = Loop(scheduler, self.executor)

    def run(self, requests):
        """Every request's tokens, log probabilities, prompt scores, finish and error."""
        found = {request.id: {"tokens": [], "logprobs": []} for request in requests}
        for request in requests:
            self.loop.add(request)
        while self.loop.unfinished:
            for update in self.loop.step():
                entry = found[update.id]
                entry["tokens"] += update.tokens
                entry["logprobs"] += update.logprobs or ()
                entry["prompt"] = update.prompt_logprobs or entry.get("prompt")
                entry["finish"], entry["error"] = update.finish, update.error
        self.loop.scheduler.verify()
        return found

    def one(self, prompt, params, emitted=()):
        return self.run([Request(id="x", prompt=prompt, params=params, emitted=emitted)])["x"]


@pytest.fixture
def engine(folder):
    made = []

    def make(model=folder, **config):
        made.append(Engine(model, **config))
        return made[-1]

    yield make
    for found in made:
        found.executor.close()


def prompts(count, seed=0, low=1, high=40):
    rng = random.Random(seed)
    usable = [token for token in range(3, VOCAB) if token != POISON]
    return [tuple(rng.choices(usable, k=rng.randint(low, high))) for _ in range(count)]


def greedy(**values):
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 20, "ignore_eos": True} | values)


def requests_for(texts, params_of):
    return [
        Request(id=str(i), prompt=prompt, params=params_of(i)) for i, prompt in enumerate(texts)
    ]


SHAPES = [
    {},
    {"max_num_batched_tokens": 20},
    {"async_scheduling": True},
    {"async_scheduling": True, "max_num_batched_tokens": 24, "num_gpu_blocks_override": 40},
]


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "chunked", "overlapped", "starved"])
def test_greedy_text_is_that_of_transformers(engine, twin, shape):
    texts = prompts(12)
    run = engine(**shape)
    found = run.run(requests_for(texts, lambda _: greedy()))
    if "num_gpu_blocks_override" in shape:
        assert run.loop.scheduler.counters.preemptions
    for index, prompt in enumerate(texts):
        expected = twin.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
        assert found[str(index)]["tokens"] == expected[0, len(prompt) :].tolist()
        assert found[str(index)]["finish"] is FinishReason.LENGTH


@pytest.mark.parametrize("budget", [20, 2048])
def test_log_probabilities_are_those_of_transformers(engine, twin, budget):
    prompt = prompts(1, low=33)[0]
    params = greedy(logprobs=4, prompt_logprobs=4)
    found = engine(max_num_batched_tokens=budget).one(prompt, params)
    whole = torch.tensor([*prompt, *found["tokens"]])
    with torch.no_grad():
        expected = twin(whole[None]).logits[0].log_softmax(-1)
    assert found["prompt"][0] is None and len(found["prompt"]) == len(prompt)
    entries = [*found["prompt"][1:], *found["logprobs"]]
    assert len(entries) == len(whole) - 1
    for position, entry in enumerate(entries, start=1):
        row, token = expected[position - 1], whole[position]
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert entry.rank == 1 + int((row > row[token]).sum())
        top = row.topk(4)
        assert [t for t, _ in entry.top] == top.indices.tolist()
        assert [v for _, v in entry.top] == pytest.approx(top.values.tolist(), abs=1e-4)
    for entry in found["logprobs"]:
        assert entry.logprob == entry.top[0][1]


@pytest.fixture(scope="module")
def many_words(tmp_path_factory):
    """A model so rich in words that drawing one is worth more than one thread."""
    found = tmp_path_factory.mktemp("words")
    config = LlamaConfig(
        vocab_size=WORTH_WAKING,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(found)
    return found


def num_pool_threads():
    names = [task.joinpath("comm") for task in Path("/proc/self/task").iterdir()]
    return sum(name.exists() and name.read_text() == "shoal-cpu\n" for name in names)


@pytest.mark.skipif(loaded() is None, reason="the native library is not built")
def test_sampling_wakes_the_threads_of_the_step_and_no_others(many_words):
    before = num_pool_threads()
    params = SamplingParams(temperature=1.0, logprobs=2, prompt_logprobs=2, max_tokens=3, seed=1)
    threads = []

    def serve():
        run = Engine(many_words, threads=3)
        run.one((5, 6, 7), params)
        threads.append(num_pool_threads() - before)
        run.executor.close()

    thread = threading.Thread(target=serve)  # whose own no pool is yet
    thread.start()
    thread.join()
    assert threads == [2]


def drawn(index):
    kinds = ({}, {"top_k": 9}, {"top_p": 0.9}, {"min_p": 0.02, "repetition_penalty": 1.3})
    return SamplingParams(
        seed=index, temperature=0.8, max_tokens=15, ignore_eos=True, **kinds[index % 4]
    )


@pytest.fixture(scope="module")
def undisturbed(folder):
    """What each of sixteen drawn texts is when it has the engine to itself."""
    alone = Engine(folder)
    texts = [alone.one(prompt, drawn(i))["tokens"] for i, prompt in enumerate(prompts(16, seed=4))]
    alone.executor.close()
    return texts


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "chunked", "overlapped", "starved"])
def test_seeded_text_does_not_depend_on_company(engine, undisturbed, shape):
    found = engine(**shape).run(requests_for(prompts(16, seed=4), drawn))
    assert [found[str(i)]["tokens"] for i in range(16)] == undisturbed


@pytest.mark.parametrize("cut", [1, 9])
def test_a_generation_goes_on_from_its_emitted_tokens(engine, cut):
    params = SamplingParams(
        seed=3, max_tokens=20, min_tokens=15, stop_token_ids=[9], presence_penalty=1.0
    )
    prompt, run = prompts(1, seed=8, low=20)[0], engine()
    whole = run.one(prompt, params)["tokens"]
    rest = run.one(prompt, params, emitted=tuple(whole[:cut]))["tokens"]
    assert whole[:cut] + rest == whole


def raising(emitted, row):
    raise RuntimeError("on purpose")


FAULTS = {
    "not a number": {},
    "on purpose": {"logits_processors": [raising]},
    "logit_bias holds token id 128": {"logit_bias": {VOCAB: 5.0}},
}


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("reason", FAULTS)
def test_one_bad_request_in_sixteen_fails_alone(engine, poisoned, reason, overlapped):
    texts = prompts(16, seed=5)

    def safe(index):
        return replace(drawn(index), bad_words_ids=[[POISON]])

    run = engine(poisoned, async_scheduling=overlapped)
    well = run.run(requests_for(texts, safe))
    assert not any(entry["error"] for entry in well.values())
    bad = [*texts]
    if reason == "not a number":
        bad[6] = (*bad[6], POISON)
    params = replace(safe(6), **FAULTS[reason])
    found = run.run(requests_for(bad, lambda i: params if i == 6 else safe(i)))
    assert found["6"]["finish"] is FinishReason.ERROR and reason in found["6"]["error"]
    others = found.keys() - {"6"}
    assert all(found[name] == well[name] for name in others)
    again = run.run(requests_for(texts, safe))  # in blocks that may hold NaN now
    assert again == well


def test_greedy_rows_are_the_same_whatever_computes_them(engine, poisoned):
    """Alone they are chosen in the product of the head, beside a drawn row from its logits."""
    greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    texts = prompts(5, seed=9)
    texts[3] = (*texts[3], POISON)
    run = engine(poisoned)
    alone = run.run(requests_for(texts, lambda i: greedy))
    assert {name for name, entry in alone.items() if entry["error"]} == {"3"}
    assert "not a number" in alone["3"]["error"]
    mixed = run.run(requests_for([*texts, texts[0]], lambda i: drawn(i) if i == 5 else greedy))
    asked = run.run(requests_for(texts, lambda i: replace(greedy, logprobs=0)))
    for name in alone:
        assert mixed[name] == alone[name]
        assert asked[name]["tokens"] == alone[name]["tokens"]


def test_layers_that_see_a_window_have_blocks_of_their_own(engine, model):
    groups = engine().capacity.groups
    windows = {"qwen2": [None, 20]}.get(model.config.model_type, [None])
    assert [group.window for group in groups] == windows


def test_what_start_finds_out(folder, engine):
    run = engine(max_num_seqs=4, threads=None)
    capacity = run.capacity
    assert (capacity.vocab_size, capacity.max_model_len) == (VOCAB, 128)
    assert capacity.eos_token_ids == frozenset({2})
    assert (capacity.dtype, capacity.device, capacity.block_size) == ("float32", "cpu", 8)
    assert capacity.num_blocks == (2 * (4 * 16 + 1),) * len(capacity.groups)
    assert [name for name, _ in capacity.phases] == ["size", "load", "cache"]
    assert dict(capacity.table)["weights"] == dict(forecast(run.config).sizing.table)["weights"]
    health = run.executor.call("health")[0]
    assert health["rank"] == 0 and health["device"] == "cpu"
    with pytest.raises(ValueError, match="no control method 'dance'; it has health"):
        run.executor.call("dance")


@pytest.mark.parametrize(("instructions", "prompts"), [(None, 128), ("avx2", 128), ("amx", 256)])
def test_blocks_and_steps_of_cpus_where_nobody_asked_for_others(
    folder, monkeypatch, instructions, prompts
):
    monkeypatch.setattr("shoal.engine.worker.device.instructions", lambda: instructions)
    found = forecast(EngineConfig(model=str(folder), device="cpu"))
    assert (found.sizing.block_size, found.sizing.step_tokens) == (32, 512)
    assert found.device.prompt_tokens == prompts


@pytest.mark.parametrize("overlapped", [False, True])
def test_what_does_not_fit_is_refused_before_it_is_loaded(folder, tmp_path, overlapped):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    config = EngineConfig(
        model=str(tmp_path), num_gpu_blocks_override=3, async_scheduling=overlapped
    )
    executor = LocalExecutor(config)
    with pytest.raises(ConfigError, match="lower max_model_len to 64") as error:
        executor.start(config)
    assert error.value.key == "max_model_len"
    executor.close()
    fits = EngineConfig(model=str(tmp_path), num_gpu_blocks_override=3, max_model_len=64)
    with pytest.raises(LoadError, match="safetensors"):
        Worker().start(fits)
    dummy = EngineConfig(
        model=str(tmp_path), num_gpu_blocks_override=3, max_model_len=64, load_format="dummy"
    )
    assert set(Worker().start(dummy).num_blocks) == {3}


def test_a_step_that_finds_no_threads_blames_no_rank_beside_it(engine, monkeypatch):
    run = engine()
    monkeypatch.setattr(Pool, "run", lambda *given: 1)
    with pytest.raises(WorkerLost, match=r"the native op \w+ failed, at .*, \w+: ") as error:
        run.one((5, 6), greedy())
    assert "beside" not in str(error.value)


def test_whoever_starts_a_rank_may_watch_it_load(folder):
    seen = []
    worker = Worker(on_load=lambda done, total: seen.append((done, total)))
    worker.start(EngineConfig(model=str(folder), num_gpu_blocks_override=8, max_model_len=64))
    worker.close()
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_a_rank_that_has_just_started_is_idle(folder):
    """Else whoever watches takes what was recorded last for where it is stuck."""
    worker = Worker()
    worker.start(EngineConfig(model=str(folder), num_gpu_blocks_override=8, max_model_len=64))
    worker.close()
    assert worker.state().operation == "idle"


@pytest.mark.parametrize(("num_slots", "num_tokens"), [(1, 2), (20, 2), (20, 40), (1, 1000)])
def test_what_was_rehearsed_leaves_no_trace(engine, monkeypatch, num_slots, num_tokens):
    def drawn(_):
        return SamplingParams(temperature=0.7, seed=4, max_tokens=6, logprobs=0, ignore_eos=True)

    texts = prompts(3)
    right = engine(max_num_seqs=num_slots).run(requests_for(texts, drawn))
    monkeypatch.setattr(Device, "rehearses", True)
    monkeypatch.setattr(Device, "rehearsed_tokens", num_tokens)
    rehearsed = engine(max_num_seqs=num_slots)
    assert "rehearse" in dict(rehearsed.capacity.phases)
    (rank,) = rehearsed.executor.ranks()
    assert (rank.step, rank.operation, rank.last_step_s, rank.expected_s) == (-1, "idle", None, 0)
    assert rehearsed.run(requests_for(texts, drawn)) == right
