"""A bar for offline generation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from .outputs import RequestOutput


class Bar:
    """A bar over finished prompts with the speed so far, where tqdm is installed."""

    def __init__(self, wanted: bool | Callable[..., Any], total: int) -> None:
        self._began = time.perf_counter()
        self._prompt = self._output = 0
        self._bar: Any = None
        if wanted:
            with contextlib.suppress(ImportError):
                make = wanted if callable(wanted) else _tqdm()
                self._bar = make(total=total, desc="Processed prompts", dynamic_ncols=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, output: RequestOutput) -> None:
        """Count a finished prompt."""
        if self._bar is None:
            return
        self._prompt += len(output.prompt_token_ids)
        self._output += sum(len(made.token_ids) for made in output.outputs)
        seconds = max(time.perf_counter() - self._began, 1e-9)
        self._bar.set_postfix_str(
            f"est. speed input: {self._prompt / seconds:.2f} toks/s, "
            f"output: {self._output / seconds:.2f} toks/s",
            refresh=False,
        )
        self._bar.update(1)


def _tqdm() -> Callable[..., Any]:
    from tqdm.auto import tqdm

    return tqdm
