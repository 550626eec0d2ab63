"""The one place that tells CPU from CUDA: memory, threads and transfers."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.cpu import memory
from ...kernels.cpu.backend import gap
from ...kernels.cpu.bindings import Pool, absence, instructions, left_out
from ...kernels.gpu.choice import Model, choose_attention, gpu
from ...kernels.gpu.room import NONE as NO_ROOM
from ...kernels.gpu.room import Room, room
from ..errors import ConfigError
from ..plan import CacheSpec
from ..sizing import Memory
from .machine import free_memory, num_cores

log = logging.getLogger(__name__)


class Mark(NamedTuple):
    """A moment on the device's own clock."""

    event: torch.cuda.Event | None
    host_s: float

    def passed(self) -> bool:
        """Whether it has come."""
        return self.event is None or self.event.query()

    def since_s(self, earlier: Mark) -> float:
        """Seconds from another mark to this one; waits until the device has passed both."""
        if self.event is None or earlier.event is None:
            return self.host_s - earlier.host_s
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1000


class Download(NamedTuple):
    """A copy to the host: `read` waits until it has arrived."""

    host: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> Tensor:
        """The tensor in the machine's own memory."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host


@dataclass(frozen=True, slots=True)
class Device:
    """Where a rank computes, and which of its kernels."""

    place: torch.device
    choice: ops.Choice = field(default_factory=ops.Choice)

    @property
    def is_cpu(self) -> bool:
        """Whether memory is the machine's own."""
        return self.place.type == "cpu"

    @property
    def offers_kernels(self) -> bool:
        """Whether there are several kernels for one op, and `deterministic` chooses among them."""
        return not self.is_cpu

    @property
    def block_size(self) -> int:
        """Tokens a KV block where nobody asked for another number."""
        return 32 if self.is_cpu else 16

    @property
    def step_tokens(self) -> int:
        """Tokens a step, at most, where nobody asked for another number.

        A CPU computes no faster by more at once, and all streams wait for a step's end.
        """
        return 512 if self.is_cpu else 2048

    @property
    def prompt_tokens(self) -> int | None:
        """How many of these may be of prompts, where nobody asked for another number; None: all.

        The streams that decode meanwhile wait for them. On a CPU products of 128 rows are bound by
        arithmetic already, and so as fast a row as those of 512; AMX multiplies some times faster.
        """
        if not self.is_cpu:
            return None
        return 256 if instructions() == "amx" else 128

    @property
    def divides_node(self) -> bool:
        """Whether ranks of a node divide its memory and cores, and can share what they write."""
        return self.is_cpu

    @property
    def packs_weights(self) -> bool:
        """Whether its ops read weights in an order of their own."""
        return self.is_cpu

    @property
    def adds_in_order(self) -> bool:
        """Whether sums over ranks are taken in their order, where NCCL takes its own."""
        return self.is_cpu or self.choice.exact

    @property
    def backend(self) -> str:
        """What its ranks talk over: torch.distributed's name for it."""
        return "gloo" if self.is_cpu else "cpu:gloo,cuda:nccl"

    def prepare(self, threads: int | None, sharers: int) -> int:
        """Ready the calling thread to compute; returns how many threads its ops will use.

        `threads` None means this engine's share of the cores that it may run on.
        """
        if threads is None:
            threads = max(1, num_cores() // sharers) if self.is_cpu else 1
        torch.set_num_threads(threads)
        if not self.is_cpu:
            torch.cuda.set_device(self.place)
        return threads

    @property
    def overlaps(self) -> bool:
        """Whether it computes by itself what it was told, while the host goes on."""
        return not self.is_cpu

    @property
    def rehearses(self) -> bool:
        """Whether what it computes first takes seconds: its kernels are compiled then."""
        return not self.is_cpu

    @property
    def rehearsed_tokens(self) -> int:
        """Tokens of the longest prompt of a rehearsal, so that all that a step may launch is ready:
        products in a fixed order are other programs for many rows than for few.
        """
        if not self.choice.exact:
            return 2
        from ...kernels.gpu.linear import FEW_ROWS  # needs triton, which is where `exact` is

        return FEW_ROWS + 1

    @property
    def reads_past_ends(self) -> bool:
        """Whether its attention may multiply the values behind a text's end by 0, and these must be
        finite: nothing says that all of a library's kernels mask what they read, as Triton's do.
        """
        return self.choice.attention in ("FLASH_ATTN", "FLASHINFER")

    @property
    def records_graphs(self) -> bool:
        """Whether steps of decode are recorded as CUDA graphs: their attention must not ask the
        device for anything on the way.
        """
        return not self.is_cpu and self.choice.attention in ("triton", "FLASH_ATTN")

    def cannot_record(self, dtype: torch.dtype) -> str | None:
        """Why it cannot replay steps of this dtype; None where it can, if the model lets it."""
        if self.is_cpu:
            return gap(dtype)
        return None if self.records_graphs else f"{self.choice.attention} plans on the host"

    @property
    def replays(self) -> str:
        """How it runs a step that can be recorded, in words."""
        if self.is_cpu:
            return "recorded once, then replayed in native code on threads that stay awake"
        return "decode in CUDA graphs, the rest op by op"

    def sums(self, *, recorded: bool) -> dict[str, str]:
        """What adds up over ranks, in words, by where these are; `recorded`: steps are."""
        if not self.is_cpu:
            return {"": "NCCL, added in the order of ranks" if self.choice.exact else "NCCL"}
        inside, cut = (
            (", inside the step", ", which cuts the step in two") if recorded else ("", "")
        )
        return {"on a node": f"shared memory{inside}", "across nodes": f"gloo{cut}"}

    def enter(self) -> None:
        """Make it, and its kernels, the calling thread's own."""
        ops.use(self.choice)
        if not self.is_cpu:
            torch.cuda.set_device(self.place)

    def choosing(
        self, asked: str, exact: bool, dtype: torch.dtype, sizes: tuple[int, ...], block_size: int
    ) -> tuple[Device, str]:
        """This device with the attention that `attention_backend` and `deterministic` mean for
        heads of these sizes, and why ("" on CPUs). Raises ConfigError for what cannot be served.
        """
        asked = {"TRITON_ATTN": "triton", "TORCH_SDPA": "torch"}.get(asked, asked)
        if self.is_cpu:
            if asked not in ("auto", "torch"):
                raise ConfigError(
                    f"attention_backend={asked} needs a CUDA device, and this is a CPU: leave it "
                    f"out",
                    "attention_backend",
                )
            return self, ""
        try:
            backend, why = choose_attention(
                asked, gpu(self.place), Model(dtype, sizes, block_size), exact=exact
            )
        except ValueError as error:
            raise ConfigError(str(error), "attention_backend") from error
        return Device(self.place, ops.Choice(backend, exact)), why

    def page_columns(self, dtype: torch.dtype, head_size: int, block_size: int) -> int:
        """How many columns its cache has for a head of this size."""
        return ops.page_columns(self.place, dtype, head_size, block_size)

    def room(self, heads: int, specs: Sequence[CacheSpec]) -> Room:
        """What its attention takes beside its results, for so many query heads of layers with these
        specs; on CPUs, and by torch's ops, it is counted with the activations.
        """
        if self.is_cpu:
            return NO_ROOM
        pages = [(spec.num_kv_heads, spec.head_size) for spec in dict.fromkeys(specs)]
        found = torch.cuda.get_device_properties(self.place)
        return room(self.choice.attention, heads, pages, found.multi_processor_count)

    def handed(self, own: torch.dtype) -> torch.dtype:
        """What stages hand hidden states on in: CPUs keep the residual stream in float32."""
        return torch.float32 if self.is_cpu else own

    def pool(self, threads: int) -> Pool | None:
        """Threads for native ops, where the device has such ops."""
        if not self.is_cpu:
            return None
        if reason := absence():
            log.warning("torch's ops compute, slower than shoal's own on CPUs: %s", reason)
            return None
        if reason := left_out():
            log.warning("shoal's own ops compute, slower than they could on this CPU: %s", reason)
        return Pool(threads)

    def memory(self) -> Memory:
        """What is there, what is free, and who holds the rest."""
        if self.is_cpu:
            return free_memory()
        free, total = torch.cuda.mem_get_info(self.place)
        name = torch.cuda.get_device_name(self.place)
        return Memory(total=total, free=free, source=name, host=False, holders=_holders(self.place))

    def upload(self, array: np.ndarray[Any, Any]) -> Tensor:
        """A host array on the device, without waiting for the copy; the array must not change."""
        tensor = torch.from_numpy(array)
        return tensor if self.is_cpu else tensor.pin_memory().to(self.place, non_blocking=True)

    def upload_all(self, *arrays: np.ndarray[Any, Any]) -> tuple[Tensor, ...]:
        """Host vectors of one dtype on the device, in one copy.

        They lie behind each other and so begin anywhere, for which Triton would compile anew: for
        torch's ops alone.
        """
        whole = self.upload(np.concatenate(arrays))
        return torch.split(whole, [len(array) for array in arrays])

    def download(self, tensor: Tensor) -> Download:
        """A tensor on its way to the host, behind what the device was told so far."""
        if self.is_cpu:
            return Download(tensor, None)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Download(host, arrived)

    def mark(self) -> Mark:
        """The moment at which the device is done with what it was told so far."""
        event = None
        if not self.is_cpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return Mark(event, time.monotonic())

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory that holds anything at all; on CPUs a page costs nothing until it is touched."""
        return torch.empty(shape, dtype=dtype, device=self.place)

    def large(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As `empty`, for what steps read much of: on CPUs in pages of 2 MiB where the kernel
        grants them.
        """
        return memory.empty(shape, dtype) if self.is_cpu else self.empty(*shape, dtype=dtype)

    def release(self) -> None:
        """Give freed memory back to the driver."""
        if not self.is_cpu:
            ops.release(self.choice)
            torch.cuda.empty_cache()


def pick(name: str) -> Device:
    """The device that `auto`, `cpu` or `cuda` means here. Raises ConfigError."""
    if name == "cuda" and not torch.cuda.is_available():
        build = (
            "this torch was built without CUDA" if torch.version.cuda is None else "none is seen"
        )
        raise ConfigError(f"device=cuda needs a CUDA device, and {build}; use device=cpu", "device")
    if name == "cpu" or not torch.cuda.is_available():
        return Device(torch.device("cpu"))
    return Device(torch.device("cuda", torch.cuda.current_device()))


def _holders(device: torch.device) -> tuple[str, ...]:
    """Other processes with memory on a CUDA device, as the driver's tool lists them."""
    query = ["nvidia-smi", "--query-compute-apps=pid,process_name,used_memory"]
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        out = subprocess.run(
            [*query, "--format=csv,noheader", f"--id={uuid}"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(holder for line in out.splitlines() if (holder := _holder(line)))


def _holder(line: str) -> str | None:
    """`pid, name, memory` in words, or None for this process and for what is no such line."""
    pid, _, rest = line.partition(", ")
    name, _, used = rest.rpartition(", ")
    if not pid.strip().isdigit() or int(pid) == os.getpid():
        return None
    return f"pid {pid.strip()} ({name}) holds {used}"
