"""Every instruction set that this machine runs, and AMX's tiles in plain C where it has none."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from shoal.kernels.cpu import bindings, build, threads

INSTRUCTIONS = ("avx2", "avx512", "avx512bf16", "amx")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ctypes.CDLL | None]:
    """The library with emulated tiles, built when first called for."""
    return cache(
        lambda: bindings.opened(
            build.build(tmp_path_factory.mktemp("emulated"), emulate_tiles=True)
        )
    )


@pytest.fixture(params=INSTRUCTIONS)
def instructions(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    emulated: Callable[[], ctypes.CDLL | None],
) -> Iterator[str]:
    """The instruction set that ops run on during a test."""
    native = bindings.loaded()
    assert native is not None, bindings.absence()
    before = native.shoal_instructions()
    if native.shoal_choose(request.param.encode()):
        yield request.param
        native.shoal_choose(before)
        return
    stand_in = emulated() if request.param == "amx" else None
    if stand_in is None:
        pytest.skip(f"this processor has no {request.param}")
    own = threads._Own()
    monkeypatch.setattr(bindings, "loaded", lambda: stand_in)
    monkeypatch.setattr(threads, "_own", own)
    yield request.param
    for pool in (own.opened, own.alone):
        if pool is not None:
            pool.close()
