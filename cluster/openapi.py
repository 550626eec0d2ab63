"""The OpenAPI description of the routes: requests by their schema, answers by their shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from .protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    DrainRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
)

Schema = dict[str, Any]

REQUESTS = (
    CompletionRequest,
    ChatRequest,
    TokenizeTextRequest,
    TokenizeChatRequest,
    DetokenizeRequest,
    DrainRequest,
)

_TEXT: Schema = {"type": "string"}
_STATE: Schema = {"enum": ["loading", "ready", "degraded", "down"]}
_WHOLE: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}


def _object(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_RANK: Schema = _object(
    {
        "rank": _WHOLE,
        "node": _TEXT,
        "pid": _WHOLE,
        "device": _TEXT,
        "last_step_s": _nullable(_NUMBER),
    }
)
_REPLICA: Schema = _object(
    {
        "id": _TEXT,
        "model": _TEXT,
        "node": _TEXT,
        "pid": _WHOLE,
        "state": {"enum": ["starting", "ready", "draining", "stalled", "dead"]},
        "running": _WHOLE,
        "waiting": _WHOLE,
        "kv_usage": _NUMBER,
        "ranks": _list(_RANK),
    }
)
_GATEWAY: Schema = _object({"node": _TEXT, "pid": _WHOLE, "streams": _WHOLE})
_SCALING: Schema = _object(
    {
        "model": _TEXT,
        "replicas": _WHOLE,
        "min_replicas": _WHOLE,
        "max_replicas": _WHOLE,
        "sustains": _nullable(_NUMBER),
        "decisions": _list(_object({"at": _NUMBER, "from": _WHOLE, "to": _WHOLE, "line": _TEXT})),
    }
)
_END: Mapping[str, Schema] = {
    "index": _WHOLE,
    "logprobs": _nullable({"type": "object"}),
    "finish_reason": {"enum": ["stop", "length"]},
    "stop_reason": _nullable({"type": ["string", "integer"]}),
}
_RUNNING: Mapping[str, Schema] = {
    "index": _WHOLE,
    "logprobs": _nullable({"type": "object"}),
    "finish_reason": _nullable({"enum": ["stop", "length"]}),
}
_SAID: Mapping[str, Schema] = {"role": _TEXT, "content": _TEXT}
_MESSAGE = _object(_SAID)
_USAGE: Schema = {"$ref": "#/components/schemas/Usage"}
_HEAD: Mapping[str, Schema] = {
    "id": _TEXT,
    "object": _TEXT,
    "created": _WHOLE,
    "model": _TEXT,
    "system_fingerprint": _TEXT,
}

ANSWERS: Mapping[str, Schema] = {
    "Error": _object(
        {
            "error": _object(
                {"message": _TEXT, "type": _TEXT, "param": _nullable(_TEXT), "code": _TEXT}
            )
        }
    ),
    "Usage": _object(
        {
            "prompt_tokens": _WHOLE,
            "completion_tokens": _WHOLE,
            "total_tokens": _WHOLE,
        },
        prompt_tokens_details=_object({"cached_tokens": _WHOLE}),
    ),
    "Completion": _object(
        {
            **_HEAD,
            "choices": _list(_object({"text": _TEXT, **_END})),
            "usage": _USAGE,
        }
    ),
    "ChatCompletion": _object(
        {
            **_HEAD,
            "choices": _list(_object({"message": _MESSAGE, **_END})),
            "usage": _USAGE,
        }
    ),
    "CompletionChunk": _object(
        {**_HEAD, "choices": _list(_object({"text": _TEXT, **_RUNNING}))},
        usage=_USAGE,
    ),
    "ChatCompletionChunk": _object(
        {**_HEAD, "choices": _list(_object({"delta": _object({}, **_SAID), **_RUNNING}))},
        usage=_USAGE,
    ),
    "Tokens": _object(
        {
            "count": _WHOLE,
            "max_model_len": _WHOLE,
            "tokens": _list(_WHOLE),
            "token_strs": _nullable(_list(_TEXT)),
        }
    ),
    "Text": _object({"prompt": _TEXT}),
    "TokenizerInfo": _object(
        {
            "tokenizer_class": _TEXT,
            "bos_token": _nullable(_TEXT),
            "eos_token": _nullable(_TEXT),
            "added_tokens_decoder": {"type": "object", "additionalProperties": _TEXT},
            "chat_template": _nullable(_TEXT),
        }
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": _TEXT,
            "created": _WHOLE,
            "owned_by": _TEXT,
            "root": _TEXT,
            "parent": {"type": "null"},
            "max_model_len": _WHOLE,
        }
    ),
    "Models": _object({"object": _TEXT, "data": _list({"$ref": "#/components/schemas/Model"})}),
    "Health": _object(
        {"status": _STATE, "models": {"type": "object", "additionalProperties": _STATE}}
    ),
    "Cluster": _object(
        {"replicas": _list(_REPLICA), "gateways": _list(_GATEWAY)}, scaling=_list(_SCALING)
    ),
    "Drain": _object({"node": _TEXT, "status": {"enum": ["draining"]}}),
    "Version": _object({"version": _TEXT}),
    "About": _object({"name": _TEXT, "version": _TEXT, "api": _TEXT, "docs": _TEXT}),
}


def named(name: str) -> Schema:
    """A reference to one of the described shapes."""
    return {"$ref": f"#/components/schemas/{name}"}


def body_of(*names: str) -> Schema:
    """A request body of one of the described shapes."""
    schema = named(names[0]) if len(names) == 1 else {"anyOf": [named(name) for name in names]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def parameters_of(path: str, query: Sequence[str]) -> Schema:
    """The parameters of a path and of what may follow it."""
    names = re.findall(r"{(\w+)", path)
    inside = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    behind = [{"name": name, "in": "query", "schema": _TEXT} for name in query]
    return {"parameters": inside + behind}


def answers_of(answer: str, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """The answers of a route: the shape `answer` (`text`: plain text), or an error object."""
    content: Schema = {"application/json": {"schema": named(answer)}}
    if answer == "text":
        content = {"text/plain": {"schema": _TEXT}}
    if streams:
        content["text/event-stream"] = {"schema": _event(f"{answer}Chunk")}
    error = {"application/json": {"schema": named("Error")}}
    return {
        200: {"description": "The answer.", "content": content},
        "4XX": {"description": "Refused.", "content": error},
        "5XX": {"description": "Not possible now.", "content": error},
    }


def _event(chunk: str) -> Schema:
    """One event of a stream: a chunk, an error, or the end."""
    told = {"anyOf": [named(chunk), named("Error")]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": told}
    return _object({"data": {"anyOf": [{"const": "[DONE]"}, data]}})


def describe(generated: Schema, version: str) -> Schema:
    """FastAPI's description of the routes, completed by the shapes that it refers to."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in REQUESTS],
        ref_template="#/components/schemas/{model}",
    )
    requests = {name: _with_nulls(schema) for name, schema in definitions["$defs"].items()}
    generated.setdefault("components", {})["schemas"] = {**requests, **ANSWERS}
    generated["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    generated["info"] = {"title": "shoal", "version": version}
    return generated


def _with_nulls(schema: Schema) -> Schema:
    """A request's schema that says of its optional fields what holds of all: null is absent."""
    required = schema.get("required", ())
    fields = {
        name: field if name in required or _takes_null(field) else _or_null(field)
        for name, field in schema.get("properties", {}).items()
    }
    return {**schema, "properties": fields}


def _takes_null(field: Schema) -> bool:
    return "anyOf" in field and {"type": "null"} in field["anyOf"]


def _or_null(field: Schema) -> Schema:
    told: Schema = {
        name: field[name] for name in ("title", "description", "default") if name in field
    }
    return {**told, **_nullable({k: v for k, v in field.items() if k not in told})}


@cache
def docs_page() -> str:
    """The page that shows the description; it needs nothing from any other host."""
    return (Path(__file__).parent / "static" / "docs.html").read_text(encoding="utf-8")
