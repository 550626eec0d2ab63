"""A recorded step is one list whatever the batch it was recorded with, and refuses the rest."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from shoal.kernels import ops
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.recorder import NotRecordable, Recorder, Rows
from shoal.kernels.cpu.tape import Counts, Tape
from torch import Tensor

COUNTS = {Rows.TOKENS: 7, Rows.WANTED: 5, Rows.SEQUENCES: 2, Rows.STARTS: 3}
LARGER = {Rows.TOKENS: 5, Rows.WANTED: 64, Rows.SEQUENCES: 9, Rows.STARTS: 10}


class Block:
    """A little of a model: an embedding, a norm, a product with GELU, one added to the stream."""

    def __init__(self, dtype: torch.dtype) -> None:
        draw = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw).to(dtype)

        self.table, self.norm = weight(50, 64), weight(64)
        self.up, self.down = ops.pack(weight(96, 64)), ops.pack(weight(64, 96))
        self.tokens = torch.zeros(40, dtype=torch.int64)
        self.wanted = torch.zeros(40, dtype=torch.int64)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        residual = ops.embed(tokens, self.table)
        x = ops.gelu(ops.linear(ops.rms_norm(residual, self.norm, 1e-6), self.up))
        x = ops.add_rms_norm(ops.linear(x, self.down), residual, self.norm, 1e-6)
        return ops.gather(x, wanted)

    def record(self, counts: dict[Rows, int]) -> Tape:
        recorder = Recorder(counts, lambda: "block")
        tokens = recorder.given(self.tokens, Rows.TOKENS)
        wanted = recorder.given(self.wanted, Rows.WANTED)
        with recorder.recording():
            found = self.forward(tokens, wanted)
        return Tape(recorder.lines, recorder.view(found), Counts(40, 40, 4))


def outline(tape: Tape) -> list[Any]:
    """The lines, with buffers by number."""
    numbers: dict[int, int] = {}

    def name(value: Any) -> Any:
        buffer = getattr(value, "buffer", None)
        if buffer is None:
            return type(value).__name__ if hasattr(value, "shape") else value
        number = numbers.setdefault(id(buffer), len(numbers))
        return number, value[1:], buffer.rows, buffer.columns, buffer.dtype

    return [
        (line.kind, line.rows, {key: name(value) for key, value in line.fields.items()})
        for line in tape.lines
    ]


def test_a_record_does_not_depend_on_the_batch() -> None:
    block = Block(torch.float32)
    assert outline(block.record(COUNTS)) == outline(block.record(LARGER))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_is_what_the_ops_give(dtype: torch.dtype) -> None:
    block, pool = Block(dtype), Pool(2)
    tape = block.record(COUNTS)
    # The activation and both sums are part of products, behind which only wanted rows go on.
    assert [line.name for line in tape.lines].count("linear") == 2
    assert not any(line.name in ("activate", "add_rows") for line in tape.lines)
    for tokens, wanted in (([3, 49, 0], [2]), (list(range(40)), list(range(40)))):
        block.tokens[: len(tokens)] = torch.tensor(tokens)
        block.wanted[: len(wanted)] = torch.tensor(wanted)
        found = tape.run(pool, Counts(len(tokens), len(wanted), 1))
        right = block.forward(torch.tensor(tokens), torch.tensor(wanted))
        assert found.shape == right.shape
        assert torch.allclose(found.float(), right.float(), rtol=0.05, atol=0.05)
    pool.close()


@pytest.mark.parametrize(
    "act",
    [lambda x: x * 2, lambda x: x.float(), lambda x: x.add_(1), lambda x: ops.relu(x[1:])],
    ids=["product", "cast", "in place", "some rows"],
)
def test_what_is_no_op_is_refused(act: Any) -> None:
    block = Block(torch.bfloat16)
    recorder = Recorder(COUNTS, lambda: "block")
    tokens = recorder.given(block.tokens, Rows.TOKENS)
    with pytest.raises(NotRecordable), recorder.recording():
        act(ops.embed(tokens, block.table))


def test_a_call_cuts_the_step_in_two() -> None:
    block, pool = Block(torch.float32), Pool(1)
    recorder = Recorder(COUNTS, lambda: "block")
    tokens = recorder.given(block.tokens, Rows.TOKENS)
    with recorder.recording():
        found = ops.relu(ops.across(lambda x: x - 1, ops.embed(tokens, block.table)))
    tape = Tape(recorder.lines, recorder.view(found), Counts(40, 40, 4))
    block.tokens[:3] = torch.tensor([4, 4, 9])
    found = tape.run(pool, Counts(3, 0, 1))
    assert torch.equal(found, (block.table[torch.tensor([4, 4, 9])] - 1).relu())
    pool.close()


def test_to_record_is_not_to_import_torchs_compiler() -> None:
    """It takes a second of CPU, at every start of a rank."""
    code = (
        "import sys, torch\n"
        "from shoal.kernels import ops\n"
        "from shoal.kernels.cpu.recorder import Recorder, Rows\n"
        "recorder = Recorder({Rows.TOKENS: 7}, lambda: '')\n"
        "tokens = recorder.given(torch.zeros(9, dtype=torch.int64), Rows.TOKENS)\n"
        "with recorder.recording():\n"
        "    ops.embed(tokens, torch.zeros(5, 32)).view(-1, 2, 16)\n"
        "assert recorder.lines\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
