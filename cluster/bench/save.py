"""The files of a measurement; for `--save-result` as vLLM's own benchmark writes them, flat."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...engine.errors import ConfigError
from .figures import gaps
from .traffic import Run

_SPREADS = {"ttft": "ttft_ms", "tpot": "tpot_ms", "itl": "itl_ms", "e2el": "e2e_ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Where to, and what beside the figures. `append` adds a line to a file that is there."""

    folder: Path = Path()
    filename: str | None = None
    label: str = "shoal"
    detailed: bool = False
    append: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    def write(self, model: str, date: str, level: Mapping[str, Any], run: Run) -> Path:
        """Save a level; the file. Raises ConfigError where it cannot be written."""
        content = flat(model, date, level) | dict(self.metadata)
        if self.detailed:
            content |= details(run)
        path = self.folder / (self.filename or self._name(model, date, level))
        try:
            with path.open("a" if self.append else "w", encoding="utf-8") as file:
                file.write(json.dumps(content) + "\n")
        except OSError as error:
            raise ConfigError(f"--result-dir: {path}: {error.strerror}", "result_dir") from None
        return path

    def _name(self, model: str, date: str, level: Mapping[str, Any]) -> str:
        rate = level["request_rate"] or "inf"
        short = model.rstrip("/").rpartition("/")[2]
        at_once = f"-concurrency{level['max_concurrency']}" if level["max_concurrency"] else ""
        return f"{self.label}-{rate}qps{at_once}-{short}-{_stamp(date)}.json"


def _stamp(date: str) -> str:
    """`20260102-030405` of an ISO date."""
    return date[:19].replace("-", "").replace(":", "").replace("T", "-")


def flat(model: str, date: str, level: Mapping[str, Any]) -> dict[str, Any]:
    """The figures under vLLM's names."""
    content: dict[str, Any] = {
        "date": _stamp(date),
        "endpoint_type": "openai",
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": level["completed"] + level["failed"],
        "request_rate": level["request_rate"] or "inf",
        "burstiness": level["burstiness"] or 1.0,
        "max_concurrency": level["max_concurrency"],
        "duration": level["duration_s"],
        "completed": level["completed"],
        "failed": level["failed"],
        "total_input_tokens": level["prompt_tokens"],
        "total_output_tokens": level["output_tokens"],
        "request_throughput": level["requests_per_s"],
        "request_goodput": level["goodput_per_s"],
        "output_throughput": level["output_tokens_per_s"],
        "total_token_throughput": level["total_tokens_per_s"],
        "max_concurrent_requests": level["most_at_once"],
    }
    for part, value in (level["ramp_up"] or {}).items():
        content[f"ramp_up_{part}" if part == "strategy" else f"ramp_up_{part}_rps"] = value
    for name, key in _SPREADS.items():
        for part, value in level[key].items():
            content[f"{part}_{name}_ms"] = value
        content[f"median_{name}_ms"] = level[key].get("p50")
    return content


def details(run: Run) -> dict[str, Any]:
    """Every request, in the order of starts."""
    records = sorted(run.records, key=lambda record: record.begin)
    return {
        "input_lens": [r.num_prompt for r in records],
        "output_lens": [r.num_output for r in records],
        "ttfts": [r.arrivals[0] - r.begin if r.arrivals else 0.0 for r in records],
        "itls": [gaps(r) for r in records],
        "start_times": [r.begin for r in records],
        "generated_texts": [r.text for r in records],
        "errors": [r.error or "" for r in records],
    }


def writable(name: str | None, flag: str) -> Path | None:
    """The file of this name. Raises ConfigError where there can be none."""
    if name is None:
        return None
    path = Path(name)
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"{flag} {name}: there is no folder {path.parent} to write it in", flag)
    return _permitted(path, path if path.exists() else path.parent, flag)


def writable_folder(name: str, flag: str) -> Path:
    """The folder of this name, which is made where it is not there. Raises ConfigError where there
    can be none, or nothing can be written in it.
    """
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {name}: {error.strerror}", flag) from None
    return _permitted(path, path, flag)


def _permitted(path: Path, touched: Path, flag: str) -> Path:
    """The path, where this user may change what is `touched` by writing it."""
    if not os.access(touched, os.W_OK):
        raise ConfigError(f"{flag} {path}: this user may not write to {touched}", flag)
    return path


def write(path: Path, text: str, flag: str) -> None:
    """Fill a file that a flag names. Raises ConfigError."""
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}", flag) from None
