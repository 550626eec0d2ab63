"""How the models of a configuration would be computed here, for a person or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from .columns import table
from .config import ServeConfig
from .escapes import clean

if TYPE_CHECKING:
    from ..engine.worker.explain import Explanation

_WIDE = 12


def explained(config: ServeConfig, *, as_json: bool) -> str:
    """A table for each model, or a JSON array of them. Raises ConfigError, LoadError."""
    from ..engine.worker.explain import explain

    found = [explain(model.engine) for model in config.models]
    if as_json:
        return json.dumps([asdict(each) for each in found], indent=2) + "\n"
    return "\n".join(map(_shown, found))


def _shown(found: Explanation) -> str:
    facts = [f"{name:<{_WIDE}}{clean(words)}" for name, words in found.facts.items()]
    rows = [(p.part, p.op, p.runs, str(p.layers or ""), p.why) for p in found.parts]
    return "\n".join([*facts, "", *table(("PART", "OP", "RUNS", "LAYERS", "WHY"), rows)]) + "\n"
