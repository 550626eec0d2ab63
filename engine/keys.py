"""The keys of cached blocks: digests that anybody can compute who knows the tokens.

A block's key is chained over adapter, salt and all tokens up to the block's end, 128 bits long, so
that one caller can never be handed another's cache by a collision.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16
TOLD_TOKENS = 128


def root_key(adapter: str | None, salt: str) -> bytes:
    """The parent of a first block: parts adapters and salts from each other."""
    named = f"{adapter is not None}{len(adapter or '')}:{adapter or ''}{salt}"
    return blake2b(named.encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest()


def chained_keys(parent: bytes, tokens: Sequence[int], block_size: int) -> list[bytes]:
    """The keys of the full blocks in `tokens`, which follow the block whose key is `parent`."""
    ids = memoryview(array("q", tokens)).cast("B")
    width = 8 * block_size
    keys = []
    for start in range(0, len(ids) - width + 1, width):
        digest = blake2b(parent, digest_size=KEY_BYTES)
        digest.update(ids[start : start + width])
        parent = digest.digest()
        keys.append(parent)
    return keys


def told_every(block_size: int) -> int:
    """Of how many blocks one key is told to others: that of the last, about every TOLD_TOKENS."""
    return max(1, TOLD_TOKENS // block_size)
