"""What the Triton kernels share: products of tiles, and the size of a tile.

Numbers that change from step to step are not specialized (Triton would compile anew for 1 and for
multiples of 16, in the middle of serving); sizes and strides of the model are.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on CPU tensors."""


@triton.jit
def product(a, b, total):
    """`total + a @ b`, accumulated in float32; float32 factors are not rounded to tf32."""
    if INTERPRETED:  # which takes bfloat16's bits for integers in a product
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


def power_of_two(count: int, least: int = 1) -> int:
    """The least power of two that is no less than `count`, nor than `least`."""
    return max(least, 1 << max(0, count - 1).bit_length())
