"""What the Triton kernels become on each kind of GPU: registers, spills, shared memory.

    python benchmarks/gpu_compile.py [--targets 80,gfx942] [--quick] [--json FILE]

Needs no GPU: each launcher is called as the engine calls it, with tensors on the CPU, and where it
would launch a kernel, that kernel is compiled for the target instead: for an NVIDIA GPU (80 is
compute capability 8.0) by Triton and its own ptxas, for an AMD one by Triton's own LLVM.
`ahead`: how many groups of copies into shared memory are still on their way when a tile's have to
be there; with 0 a program waits for memory each time. AMD's have no such copies, and tiles are on
their way in registers. Ends with 1 where a kernel does not compile, spills registers, or asks for
more shared memory than the target has.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from shoal.kernels.gpu import attention, cut, draw, elementwise, linear, mask, norm, penalties
from shoal.kernels.gpu import family as families
from shoal.kernels.gpu import heads as turned
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Target = int | str
"""A compute capability of NVIDIA's, without its dot, or an architecture of AMD's."""

SHARED_KB: dict[Target, int] = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
SHARED_KB |= {"gfx90a": 64, "gfx942": 64}
"""Shared memory that one block may use (CUDA C++ Programming Guide; CDNA 2 and 3 ISA)."""

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
NAMES |= {torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Compiled:
    """One kernel on one target; registers a thread, bytes of its stack, which is what was spilled,
    bytes of shared memory a block. `ahead` is None for AMD.
    """

    kernel: str
    case: str
    target: Target
    registers: int
    spilled: int
    shared: int
    warps: int
    ahead: int | None


def source_of(function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> ASTSource:
    """What a launch of a kernel with these arguments compiles."""
    bound = inspect.signature(function.fn).bind(*args, **named).arguments
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, parameter in enumerate(function.params):
        value = bound[parameter.name]
        value = getattr(value, "value", value)
        special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (special and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + NAMES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if special and value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(function, signature, constants, attributes)


def compile_for(target: Target, source: ASTSource, options: dict[str, Any]) -> Any:
    """Compile it for a target."""
    kind = ("cuda", target, 32) if isinstance(target, int) else ("hip", target, 64)
    return triton.compile(source, target=GPUTarget(*kind), options=options)


def resources(built: Any) -> tuple[int, int]:
    """Registers a thread, and bytes of its stack."""
    if "cubin" in built.asm:
        return _of_cubin(built.asm["cubin"])
    asked = r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)"
    told = dict(re.findall(asked, built.asm["amdgcn"]))
    return int(told["vgpr_count"]), int(told["private_segment_fixed_size"])


def _of_cubin(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


def copies_ahead(built: Any) -> int | None:
    """The most groups of asynchronous copies that are left under way at a wait."""
    ptx = built.asm.get("ptx")
    if ptx is None:
        return None
    return max(map(int, re.findall(r"cp\.async\.wait_group\s+(\w+)", ptx)), default=0)


@contextmanager
def compiling(target: Target, case: str, made: list[Compiled]) -> Iterator[None]:
    """Compile what would be launched, once a kernel, its types and its constants."""
    seen: set[str] = set()

    def run(function: Any, *args: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        source = source_of(function, args, named)
        key = f"{source.hash()} {options}"
        if key in seen:
            return
        seen.add(key)
        built = compile_for(target, source, options)
        used = (*resources(built), built.metadata.shared, built.metadata.num_warps)
        made.append(Compiled(function.__name__, case, target, *used, copies_ahead(built)))

    kind = families.Family.SAFE
    if isinstance(target, int):
        kind = families.family_of((target // 10, target % 10))
    with mock.patch.object(triton.runtime.JITFunction, "run", run):
        for module in (attention, linear):
            mock.patch.object(module, "family", lambda device: kind).start()
        try:
            yield
        finally:
            mock.patch.stopall()


def attend(
    size: int, group: int, exact: bool, dtype: torch.dtype, *, alibi: bool = False, **named: Any
) -> None:
    """Prefill and decode of heads of one size."""
    named["alibi"] = torch.empty(8 * group, 1024) if alibi else None
    q = torch.empty(32, 8 * group, size, dtype=dtype)
    kv = torch.empty(2, 9, 16, 8, size, dtype=dtype)
    table = torch.zeros(16, 64, dtype=torch.int32)
    starts, lengths = torch.zeros(17, dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    attention.paged_attention(q, kv, table, starts, lengths, scale=0.1, exact=exact, **named)


def small_ops(dtype: torch.dtype) -> None:
    """Everything around attention and products, in the shapes of Llama 3.1 8B."""
    x, weight = torch.empty(32, 4096, dtype=dtype), torch.empty(4096, dtype=dtype)
    norm.add_rms_norm(x, torch.empty_like(x), weight, 1e-5)
    heads, angles = torch.empty(32, 40, 128, dtype=dtype), torch.empty(32, 64, dtype=dtype)
    elementwise.rope(heads, angles, angles)
    kv, slots = torch.empty(2, 9, 16, 8, 128, dtype=dtype), torch.zeros(32, dtype=torch.int64)
    elementwise.store_kv(heads[:, :8], heads[:, 8:16], kv, slots)
    own = torch.empty(128, dtype=dtype)
    turned.turn_and_store(heads, kv, slots, angles, angles, (own, own, 1e-6))
    turned.turn_and_store(heads, kv, slots, angles, angles, None)
    elementwise.embed(slots, x)
    elementwise.silu_mul(torch.empty(32, 28672, dtype=dtype))


def norms(dtype: torch.dtype) -> None:
    """The other norms, of rows and of heads."""
    x, weight = torch.empty(32, 4096, dtype=dtype), torch.empty(4096, dtype=dtype)
    norm.rms_norm(x, weight, 1e-5)
    norm.rms_norm(torch.empty(32, 40, 128, dtype=dtype), weight[:128], 1e-5)
    norm.layer_norm(x, weight, weight, 1e-5)
    norm.add_layer_norm(x, torch.empty_like(x), weight, weight, 1e-5)


def sampling() -> None:
    """Draws over a vocabulary of 128k, in float32."""
    rows = torch.zeros(8, dtype=torch.int64)
    x, one = torch.empty(8, 128256), torch.empty(8)
    u = torch.empty(8, dtype=torch.float64)
    draw.keyed_uniform(rows, rows, rows)
    draw.draw_any(x, u)
    cut.draw_cut(x, u, rows, 50, one, one)
    ids = torch.zeros(8, 2048, dtype=torch.int32)
    masks = torch.zeros(8, 128256 // 32, dtype=torch.int32)
    mask.mask(x, rows, masks, rows, torch.zeros(9, dtype=torch.int64), ids[:, 0].contiguous(), one)
    penalties.penalize(x, rows, ids, rows, rows, one, one, one)


def products(rows: int, dtype: torch.dtype) -> None:
    """The exact product, without and with a bias."""
    weight = torch.empty(4096, 4096, dtype=dtype)
    for bias in (None, weight[0]):
        linear.linear(torch.empty(rows, 4096, dtype=dtype), weight, bias)


def heads_of(quick: bool) -> Iterator[tuple[int, int, bool, dict[str, Any]]]:
    """Shapes of attention: head size, group, exact, and what else it is asked."""
    yield 128, 4, False, {}
    if quick:
        return
    yield 128, 4, True, {}
    yield from ((size, 4, exact, {}) for size in (64, 256) for exact in (False, True))
    yield from [(128, 7, False, {}), (80, 1, False, {}), (128, 8, False, {"window": 4096})]
    yield 128, 4, False, {"softcap": 30.0}
    yield from (
        (size, 4, exact, {"alibi": True}) for size in (64, 128, 256) for exact in (False, True)
    )


def cases(quick: bool) -> Iterator[tuple[str, Callable[[torch.dtype], None]]]:
    """What is compiled, by name, in the dtype that a target prefers; then in float32."""
    own: dict[str, Callable[[torch.dtype], None]] = {}
    for size, group, exact, named in heads_of(quick):
        words = [f"heads of {size}, {group} a group", *named, *(["exact"] if exact else [])]
        own[", ".join(words)] = partial(attend, size, group, exact, **named)
    own["8B"] = small_ops
    own["8B, other norms"] = norms
    own["4096 x 4096, few rows"] = partial(products, linear.FEW_ROWS)
    own["4096 x 4096, many rows"] = partial(products, linear.FEW_ROWS + 1)
    yield from own.items()
    yield "128k ids", lambda _: sampling()
    if not quick:
        for case, launch in own.items():
            yield f"{case}, float32", lambda _, launch=launch: launch(torch.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default=",".join(map(str, SHARED_KB)))
    parser.add_argument("--quick", action="store_true", help="one shape of attention only")
    parser.add_argument("--json", type=Path, help="write what was found there")
    chosen = parser.parse_args()
    made: list[Compiled] = []
    broken: list[str] = []
    for name in chosen.targets.split(","):
        target = int(name) if name.isdigit() else name
        dtype = torch.float16 if target in (70, 75) else torch.bfloat16
        for case, launch in cases(chosen.quick):
            try:
                with compiling(target, case, made):
                    launch(dtype)
            except RuntimeError as error:
                broken.append(f"{case}, for {target}: {error}")
    columns = f"{'target':>8}{'regs':>6}{'spill':>7}{'shared KB':>11}{'warps':>7}{'ahead':>7}"
    print(f"{'kernel':22}{'case':48}{columns}")
    for one in made:
        shared = one.shared / 1024
        print(
            f"{one.kernel:22}{one.case:48}{one.target!s:>8}{one.registers:6}{one.spilled:7}"
            f"{shared:11.1f}{one.warps:7}{'-' if one.ahead is None else one.ahead:>7}"
        )
    if chosen.json:
        command = " ".join(["python", "benchmarks/gpu_compile.py", *sys.argv[1:]])
        facts = {"command": command, "triton": triton.__version__}
        facts["kernels"] = [asdict(one) for one in made]
        chosen.json.write_text(json.dumps(facts, indent=1) + "\n")
    over = [o for o in made if o.spilled or o.shared > SHARED_KB[o.target] * 1024]
    for one in over:
        print(f"too much: {one}", file=sys.stderr)
    for words in broken:
        print(f"does not compile: {words}", file=sys.stderr)
    return 1 if over or broken else 0


if __name__ == "__main__":
    sys.exit(main())
