"""The books of graphs: batches filled up to a size, recorded when met again, replayed in place.

In place of CUDA stands a recorder whose replay computes anew over the memory that was recorded, and
puts the result where the first one lay.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
import torch
from shoal.engine.plan import Plan, Row, Start
from shoal.engine.request import SamplingParams
from shoal.engine.worker.cuda_graphs import CudaRecorder, Graphed, Recorded, Size
from shoal.engine.worker.device import Device
from shoal.engine.worker.forward import Limits
from shoal.engine.worker.graphs import Plain
from shoal.kernels import ops

from .fake import PrefixModel, blocks_for, play, runner

LIMITS = Limits(tokens=64, sequences=6, model_len=64, width=0)
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, seed=5, ignore_eos=True)


class Recorder:
    def __init__(self, failing=False):
        self.recorded, self.replays, self.failing = 0, Counter(), failing

    def record(self, compute):
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        number = self.recorded
        result = torch.full_like(compute(), torch.nan)

        def replay():
            self.replays[number] += 1
            result.copy_(compute())

        return Recorded(result, replay)


def graphed(recorder, limits=LIMITS):
    model = PrefixModel()
    run, cache = runner(model, num_blocks=200)
    plain = Plain(model, torch.float32)
    run._forward = Graphed(plain, model, cache, limits, recorder, dtype=torch.float32)
    return run, model


def together(run, prompts, steps):
    """Decode all prompts side by side; each stops after its own number of steps."""
    starts, blocks = [], {}
    for slot, (prompt, params) in enumerate(prompts):
        blocks[slot] = blocks_for(len(prompt) + steps[slot], 1 + 20 * slot)
        starts.append(Start(slot, prompt, len(prompt), blocks[slot], params))
    rows = [Row(slot, 0, len(prompt), (), True) for slot, (prompt, _) in enumerate(prompts)]
    found = {slot: [] for slot in range(len(prompts))}
    started, step = tuple(starts), 0
    while rows:
        result = run.run(Plan(step=step, started=started, rows=tuple(rows)))
        for row, tokens in zip(rows, result.tokens, strict=True):
            found[row.slot] += tokens
        rows = [
            Row(row.slot, row.start + row.num_tokens, 1, (), True)
            for row in rows
            if len(found[row.slot]) < steps[row.slot]
        ]
        started, step = (), step + 1
    return found


PROMPTS = [(tuple(range(1, 2 + 3 * i)), DRAWN if i % 2 else GREEDY) for i in range(5)]
STEPS = [12, 9, 7, 5, 3]


def test_a_batch_of_any_size_gives_what_each_row_gives_alone():
    recorder = Recorder()
    run, _ = graphed(recorder)
    found = together(run, PROMPTS, STEPS)
    for slot, (prompt, params) in enumerate(PROMPTS):
        alone, _ = runner(PrefixModel(), num_blocks=200)
        assert found[slot] == play(alone, params, prompt, STEPS[slot])[0]
    assert recorder.recorded == 4  # of 8, 4, 2 and 1 rows
    assert sum(recorder.replays.values()) > 4


def test_the_first_of_a_size_runs_op_by_op_and_the_second_is_recorded():
    recorder = Recorder()
    run, model = graphed(recorder)
    together(run, PROMPTS[:3], [2, 2, 2])
    assert not recorder.recorded and len(model.batches) == 2
    assert [batch.max_query for batch in model.batches] == [7, 1]
    together(run, PROMPTS[:3], [4, 4, 4])
    assert recorder.recorded == 1 and recorder.replays == {1: 3}
    assert len(model.batches[-1].tokens) == 4, "three rows and one of nobody"


def test_a_graph_is_for_texts_up_to_some_length():
    run, model = graphed(Recorder(), Limits(tokens=64, sequences=6, model_len=9000, width=0))
    batch = model.cache_specs and run._forward
    sizes = []
    for rows, longest in ((1, 1), (3, 1024), (3, 1025), (4, 4097), (6, 8999)):
        tokens = torch.zeros(rows, dtype=torch.int64)
        given = type("Batch", (), {"tokens": tokens, "max_kv": longest})
        sizes.append(batch._size(given))
    assert sizes == [
        Size(1, 1024),
        Size(4, 1024),
        Size(4, 4096),
        Size(4, 9000),
        Size(8, 9000),
    ]


def test_what_cannot_be_recorded_runs_op_by_op(caplog):
    run, model = graphed(Recorder(failing=True))
    found = together(run, PROMPTS, STEPS)
    for slot, (prompt, params) in enumerate(PROMPTS):
        alone, _ = runner(PrefixModel(), num_blocks=200)
        assert found[slot] == play(alone, params, prompt, STEPS[slot])[0]
    steps = [batch for batch in model.batches if batch.max_query == 1]
    rows = [len(batch.tokens) for batch in steps]
    assert rows == [8, 8, 4, 4, 4, 4, 2, 2, 1, 1, 1], "as many as ranks that replay have"
    assert [record.message for record in caplog.records] == [
        "steps not yet recorded run op by op: they cannot be (operation not permitted when stream "
        "is capturing)"
    ]


@pytest.mark.parametrize("told", [False, True])
def test_a_recording_that_fails_leaves_stream_and_allocator_as_they_were(monkeypatch, told):
    """`told`: torch had told the allocator of the end before it failed."""

    class Broken(contextlib.AbstractContextManager):
        def __init__(self, graph, **options):
            self.pool = options["pool"]

        def __enter__(self):
            streams.append("torch's own")
            under_way.append(self.pool)

        def __exit__(self, *error):
            if told:
                under_way.remove(self.pool)
            raise RuntimeError("the capture was invalidated")

    def end(device, pool):
        if pool not in under_way:
            raise RuntimeError("not currently recording to this pool")
        under_way.remove(pool)

    streams, under_way, released = ["ours"], [], []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Broken)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *given: released.append(given))
    with pytest.raises(RuntimeError, match="invalidated"):
        CudaRecorder().record(lambda: torch.zeros(1))
    assert streams == ["ours", "torch's own", "ours"]
    assert not under_way and released == ([] if told else [(3, (0, 1))])


@pytest.mark.parametrize(
    ("attention", "recorded"),
    [("triton", True), ("FLASH_ATTN", True), ("FLASHINFER", False), ("torch", False)],
)
def test_attention_that_asks_the_device_is_not_recorded(attention, recorded):
    device = Device(torch.device("cuda", 0), ops.Choice(attention))
    assert device.records_graphs == recorded
    assert not Device(torch.device("cpu")).records_graphs


@pytest.mark.gpu
def test_real_graphs_give_what_op_by_op_gives(tiny_model, monkeypatch, caplog):
    from shoal.engine.llm import LLM

    replays = Counter()
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph):
        replays[eager] += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    texts = {}
    for eager in (True, False):
        llm = LLM(str(tiny_model), dtype="bfloat16", enforce_eager=eager, deterministic=True)
        params = SamplingParams(temperature=0.0, max_tokens=40)
        prompts = ["Once", "The sea is", "Two plus two", "a", "b"]
        texts[eager] = [out.outputs[0].token_ids for out in llm.generate(prompts, params)]
    assert texts[True] == texts[False]
    assert replays[False] > 20 and not replays[True], caplog.text
