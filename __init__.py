"""shoal: a distributed LLM serving cluster on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "LLM": "engine.llm",
    "AsyncEngine": "engine.engine",
    "SamplingParams": "engine.request",
    "BeamSearchParams": "engine.beam_search",
    "RequestOutput": "engine.llm",
    "CompletionOutput": "engine.llm",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from shoal.engine.beam_search import BeamSearchParams as BeamSearchParams
    from shoal.engine.engine import AsyncEngine as AsyncEngine
    from shoal.engine.llm import LLM as LLM
    from shoal.engine.llm import CompletionOutput as CompletionOutput
    from shoal.engine.llm import RequestOutput as RequestOutput
    from shoal.engine.request import SamplingParams as SamplingParams


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import shoal` costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        import_module(".engine.supported", __name__).check_platform()
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
