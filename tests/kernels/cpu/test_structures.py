"""The structs that Python mirrors, and a run of steps."""

from __future__ import annotations

import ctypes

import pytest
import torch
from shoal.kernels.cpu.bindings import Pool, absence, has, loaded
from shoal.kernels.cpu.structures import (
    ARGS,
    Add,
    Dtype,
    Kind,
    Matrix,
    Panels,
    Part,
    Sizes,
    Step,
    step,
)


@pytest.fixture(scope="module")
def native() -> ctypes.CDLL:
    found = loaded()
    assert found is not None, absence()
    return found


def test_structs_are_as_long_in_python_as_in_the_library(native: ctypes.CDLL) -> None:
    others = {-1: Step, -2: Sizes, -3: Panels, -4: Part}
    for kind, mirror in {**ARGS, **others}.items():
        assert native.shoal_size_of(kind) == ctypes.sizeof(mirror), kind


def test_the_library_says_what_it_has(native: ctypes.CDLL) -> None:
    assert has(Kind.ADD_ROWS)
    assert not native.shoal_has(-1) and not native.shoal_has(len(Kind))


@pytest.mark.parametrize("threads", (1, 2, 3))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_steps_run_in_order_on_every_number_of_threads(
    native: ctypes.CDLL, threads: int, dtype: torch.dtype
) -> None:
    pool = Pool(threads)
    total, x = torch.zeros(37, 75, dtype=dtype), torch.ones(37, 75, dtype=dtype)
    kind = Dtype.BF16 if dtype is torch.bfloat16 else Dtype.F32
    args = Add(Matrix(x.data_ptr(), 75, kind), Matrix(total.data_ptr(), 75, kind), 75, 0)
    progress = ctypes.c_int64(0)
    steps = (Step * 3)(*(step(Kind.ADD_ROWS, args, mark) for mark in (7, 8, 9)))
    assert pool.run(steps, Sizes(30, 0, 0), ctypes.addressof(progress)) == 0
    assert progress.value == 9
    assert bool((total[:30] == 3).all()) and bool((total[30:] == 0).all())
    pool.close()


def test_a_run_may_follow_a_shorter_one_at_once(native: ctypes.CDLL) -> None:
    pool = Pool(2)
    total, x = torch.zeros(4, 8), torch.ones(4, 8)
    args = Add(Matrix(x.data_ptr(), 8, Dtype.F32), Matrix(total.data_ptr(), 8, Dtype.F32), 8, 0)
    runs = [(Step * n)(*[step(Kind.ADD_ROWS, args)] * n) for n in (0, 1, 20, 3)]
    for _ in range(200):
        for steps in runs:
            assert pool.run(steps, Sizes(4, 0, 0)) == 0
    assert bool((total == 200 * 24).all())
    pool.close()
