"""The fields of requests: OpenAI's are all known, each has a meaning, and bounds are true."""

import typing

import httpx2 as httpx
import pytest
from openai.types import completion_create_params as of_completions
from openai.types.chat import completion_create_params as of_chats
from shoal.cluster.openapi import REQUESTS
from shoal.cluster.protocol import IDLE, ChatRequest, CompletionRequest
from shoal.cluster.unbuilt import UNBUILT

PATHS = {CompletionRequest: "/v1/completions", ChatRequest: "/v1/chat/completions"}
NEEDED = {"messages": [{"role": "user", "content": "hello"}], "prompt": "hello"}


def post(door, schema, **fields):
    return httpx.post(door.url + PATHS[schema], json={**NEEDED, **fields}, timeout=60)


@pytest.mark.parametrize(
    ("params", "schema"),
    [
        (of_chats.CompletionCreateParamsBase, ChatRequest),
        (of_completions.CompletionCreateParamsBase, CompletionRequest),
    ],
)
def test_no_field_of_openais_client_is_unknown(params, schema):
    theirs = set(typing.get_type_hints(params)) | {"stream"}
    unknown = theirs - set(schema.model_fields) - set(UNBUILT)
    assert unknown == set(), "give each a meaning, IDLE, or a reason in UNBUILT"


def test_no_field_is_both_taken_and_refused():
    for schema in REQUESTS:
        assert set(schema.model_fields) & set(UNBUILT) == set()


IDLE_FIELDS = [name for name, f in ChatRequest.model_fields.items() if f.description == IDLE]


@pytest.mark.parametrize("name", IDLE_FIELDS)
def test_what_changes_nothing_changes_nothing(door, name):
    values = [None, True, "auto", {"mode": "x"}, 3]
    if ChatRequest.model_fields[name].annotation is not typing.Any:
        values = [None, False if name == "parallel_tool_calls" else 3]
    plain = post(door, ChatRequest, seed=1).json()["choices"]
    for value in values:
        answer = post(door, ChatRequest, seed=1, **{name: value})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain


def bounds(schema):
    """Every bound that the description tells: field, a value at it, one beyond it."""
    for name, field in schema.model_json_schema()["properties"].items():
        if "minimum" in field:
            yield name, field["minimum"], field["minimum"] - 1
        if "maximum" in field:
            yield name, field["maximum"], field["maximum"] + 1
        if "exclusiveMinimum" in field:
            yield name, None, field["exclusiveMinimum"]
        if "maxItems" in field:
            yield name, ["q"] * field["maxItems"], ["q"] * (field["maxItems"] + 1)
        if field.get("items", {}).get("minimum") == 0:
            yield name, [0], [-1]


CASES = [(schema, *bound) for schema in PATHS for bound in bounds(schema)]


@pytest.mark.parametrize(("schema", "name", "within", "beyond"), CASES)
def test_each_bound_that_is_told_is_the_real_one(door, schema, name, within, beyond):
    wanted = {"logprobs": True} if (schema, name) == (ChatRequest, "top_logprobs") else {}
    refused = post(door, schema, **wanted, **{name: beyond})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    if name == "best_of" and within == 1:
        wanted["n"] = 1
    answer = post(door, schema, **wanted, **{name: within})
    assert answer.status_code == 200, answer.text


def test_every_field_says_what_it_does():
    for schema in PATHS:
        silent = [name for name, field in schema.model_fields.items() if not field.description]
        assert silent == []
