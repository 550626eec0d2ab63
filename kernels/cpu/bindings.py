"""The native library: whether it is there, what it can do, and the threads that run its steps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from torch import Tensor

from .build import digest
from .structures import Kind, Matrix, Panels, Part, Sizes, Step

PATH = Path(__file__).resolve().parent / "native.so"


@cache
def loaded() -> ctypes.CDLL | None:
    """The native library; None where there is none to be used: `absence` says why."""
    return None if absence() else opened(PATH)


@cache
def absence() -> str | None:
    """Why there is no native library here, in half a sentence; None where there is one."""
    command = f"python {PATH.parent}/build.py"
    if not PATH.exists():
        return f"they were not built: {command}"
    try:
        found = opened(PATH)
    except OSError as error:
        return f"they do not load: {error}"
    except AttributeError:
        return f"they were built of older sources: {command}"
    if found is None:
        return "this processor has neither AVX2 nor AVX-512"
    if digest() != found.shoal_sources().decode():
        return f"they were built of other sources: {command}"
    return None


def instructions() -> str | None:
    """The instruction set of the native ops; None without them."""
    native = loaded()
    return None if native is None else native.shoal_instructions().decode()


def left_out() -> str | None:
    """Why the native ops run on less than this processor has, in half a sentence; None where they
    run on the best there is, or not at all.
    """
    native = loaded()
    if native is None or (best := native.shoal_left_out()) is None:
        return None
    command = f"python {PATH.parent}/build.py"
    return f"{best.decode()} was left out when they were built: {command} adds it, or says why not"


def opened(path: Path) -> ctypes.CDLL | None:
    """The library in this file; None where this processor runs none of it. Raises OSError."""
    found = ctypes.CDLL(str(path))
    structures = (Step, Sizes, Panels, Matrix, Part)
    step, sizes, panels, matrix, part = (POINTER(each) for each in structures)
    declare = (
        ("shoal_pool_open", c_void_p, (c_int32,)),
        ("shoal_pool_close", None, (c_void_p,)),
        ("shoal_pool_touch", None, (c_void_p, part, c_int64)),
        ("shoal_run", c_int64, (c_void_p, step, c_int64, sizes, c_void_p)),
        ("shoal_pack", c_int32, (c_void_p, matrix, panels)),
        ("shoal_packed_bytes", c_int64, (panels,)),
        ("shoal_instructions", c_char_p, ()),
        ("shoal_left_out", c_char_p, ()),
        ("shoal_choose", c_int32, (c_char_p,)),
        ("shoal_has", c_int32, (c_int32,)),
        ("shoal_size_of", c_int64, (c_int32,)),
        ("shoal_sources", c_char_p, ()),
    )
    for name, result, arguments in declare:
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found if found.shoal_instructions() else None


@cache
def has(kind: Kind) -> bool:
    """Whether the native library computes ops of this kind here."""
    native = loaded()
    return native is not None and bool(native.shoal_has(kind))


class OpFailed(RuntimeError):
    """The native op `kind` failed, at `where` in a step: REDUCE where a rank beside this one is
    gone, any for want of threads after a fork.
    """

    def __init__(self, kind: Kind, where: str = "") -> None:
        super().__init__(kind, where)
        self.kind = kind
        self.where = where

    def __str__(self) -> str:
        at = f", at {self.where}" if self.where else ""
        return f"the native op {self.kind.name} failed{at}: there are no threads after a fork"


class Pool:
    """Threads that run steps together. One thread may run it at a time."""

    def __init__(self, threads: int) -> None:
        native = loaded()
        assert native is not None, "whoever makes a pool has seen the library"
        self._native = native
        self.threads = threads
        self._pool = native.shoal_pool_open(threads)
        if not self._pool:
            raise MemoryError(f"no memory, or no threads, for a pool of {threads}")
        self._touched: tuple[object, ...] = ()

    def run(
        self,
        steps: ctypes.Array[Step],
        sizes: Sizes,
        progress: int | None = None,
    ) -> int:
        """Run steps in order, the interpreter's lock released; 0, or the step that failed."""
        failed: int = self._native.shoal_run(self._pool, steps, len(steps), sizes, progress)
        return failed

    def touch(self, parts: Sequence[Tensor]) -> None:
        """Have pages taken while there is no work, the first of each part first, from the next run
        on; contiguous tensors, which are kept until the pool is closed. Once a pool.
        """
        given = (Part * len(parts))(*(Part(part.data_ptr(), part.nbytes) for part in parts))
        self._touched = (given, parts)
        self._native.shoal_pool_touch(self._pool, given, len(parts))

    def pack(self, rows: Matrix, panels: Panels) -> None:
        """Pack a row-major weight [outputs, inputs] into `panels.data`."""
        if self._native.shoal_pack(self._pool, rows, panels):
            raise MemoryError(f"no threads for a pool of {self.threads}")

    def packed_bytes(self, panels: Panels) -> int:
        """What the panels of such a weight take; `data` need not be set."""
        num_bytes: int = self._native.shoal_packed_bytes(panels)
        return num_bytes

    def close(self) -> None:
        """End the threads; harmless when repeated."""
        if self._pool:
            self._native.shoal_pool_close(self._pool)
            self._pool, self._touched = None, ()

    def __del__(self) -> None:
        self.close()
