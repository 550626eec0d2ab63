"""Fields of requests that are known, whose feature is not built: refused unless they leave it off.

A caller who asks for JSON or a tool call and gets free text has been cheated; one whose library
sends `tools: []` has not asked for anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..engine.errors import InvalidRequest


class Unbuilt(NamedTuple):
    """Why a field is refused, and the values that change nothing."""

    reason: str
    off: tuple[object, ...] = ()


_TOOLS = "tool calls are not built yet"
_STRUCTURED = "structured output is not built yet"
_TRANSFER = "moving KV between engines is not built yet"

UNBUILT: Mapping[str, Unbuilt] = {
    "tools": Unbuilt(_TOOLS),
    "tool_choice": Unbuilt(_TOOLS, ("none", "auto")),
    "functions": Unbuilt(_TOOLS),
    "function_call": Unbuilt(_TOOLS, ("none", "auto")),
    "response_format": Unbuilt(_STRUCTURED, ({"type": "text"},)),
    "structured_outputs": Unbuilt(_STRUCTURED),
    "guided_json": Unbuilt(_STRUCTURED),
    "guided_regex": Unbuilt(_STRUCTURED),
    "guided_choice": Unbuilt(_STRUCTURED),
    "guided_grammar": Unbuilt(_STRUCTURED),
    "structural_tag": Unbuilt(_STRUCTURED),
    "suffix": Unbuilt("completing text before a suffix is not built yet"),
    "prompt_embeds": Unbuilt("prompts as embeddings are not built yet"),
    "modalities": Unbuilt("answers other than text are not built yet", (["text"],)),
    "moderation": Unbuilt("moderation is not built"),
    "audio": Unbuilt("spoken answers are not built yet"),
    "web_search_options": Unbuilt("searching the web is not built yet"),
    "logits_processors": Unbuilt("code from requests is never run"),
    "chat_template": Unbuilt(
        "a template from a request is never run; give it to the server with --chat-template"
    ),
    "logprob_token_ids": Unbuilt("log probabilities of chosen tokens are not built yet"),
    "repetition_detection": Unbuilt("ending on repetition is not built yet"),
    "thinking_token_budget": Unbuilt("a budget for reasoning is not built yet", (-1,)),
    "kv_transfer_params": Unbuilt(_TRANSFER),
    "ec_transfer_params": Unbuilt(_TRANSFER),
    "watermarking": Unbuilt("watermarks are not built yet", (False,)),
}


def refuse_unbuilt_fields(fields: Mapping[str, object]) -> None:
    """Raise InvalidRequest for the first field that asks for what is not built.

    Empty strings, lists and objects ask for nothing.
    """
    for name in (name for name in fields if name in UNBUILT):
        value, unbuilt = fields[name], UNBUILT[name]
        empty = isinstance(value, str | list | dict) and not value
        if not empty and not any(value == off and type(value) is type(off) for off in unbuilt.off):
            raise InvalidRequest(f"{name} is not supported: {unbuilt.reason}", name)
