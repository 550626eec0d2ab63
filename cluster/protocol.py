"""What callers may send: OpenAI's requests, with vLLM's extra fields.

An explicit null stands for an absent field. A field that nobody knows is ignored. Numbers are not
read out of strings. What a value may be beyond its type is checked where it is used.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from ..engine.bounds import MAX_BAD_WORDS, MAX_N, MAX_STOPS
from ..engine.errors import InvalidRequest
from .unbuilt import refuse_unbuilt_fields

log = logging.getLogger(__name__)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer; 5.0 is one too, as some languages write it."""

_ID: dict[str, Any] = {"type": "integer", "minimum": 0}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}


def _listed(items: dict[str, Any], **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, **bounds}


_IDS = _listed(_ID)
Prompt = Annotated[Any, WithJsonSchema({"anyOf": [_TEXT, _listed(_TEXT), _IDS, _listed(_IDS)]})]
EarlyStopping = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "boolean"}, {"const": "never"}]})]


def _part(key: str, *types: str) -> dict[str, Any]:
    fields = {"type": {"enum": list(types)}, key: {"type": "string"}}
    return {"type": "object", "properties": fields, "required": ["type", key]}


_PARTS = [
    {"type": "string"},
    _part("text", "text", "input_text", "output_text"),
    _part("refusal", "refusal"),
]
_CONTENT: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "items": {"anyOf": _PARTS}},
]


def _message(roles: list[str], required: list[str], *content: dict[str, Any]) -> dict[str, Any]:
    fields = {"role": {"enum": roles}, "content": {"anyOf": [*_CONTENT, *content]}}
    return {"type": "object", "properties": fields, "required": ["role", *required]}


Messages = Annotated[
    Any,
    WithJsonSchema(
        _listed(
            {
                "anyOf": [
                    _message(["system", "developer", "user", "tool", "function"], ["content"]),
                    _message(["assistant"], [], {"type": "null"}),
                ]
            }
        )
    ),
]


def told(default: Any, description: str, **bounds: Any) -> Any:
    """A field as callers read of it.

    `bounds` are JSON schema's words for what is checked where the field is used.
    """
    if default is list or default is dict:
        return Field(default_factory=default, description=description, json_schema_extra=bounds)
    return Field(default, description=description, json_schema_extra=bounds)


MAX_SESSION = 256
IDLE = "Taken, and changes nothing."
_TOKENS: dict[str, Any] = {"items": {"type": "integer", "minimum": 0}}


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(strict=True, frozen=True)

    include_usage: bool | None = told(None, "Send the usage in a last chunk.")
    continuous_usage_stats: bool | None = told(None, "Send it in every chunk; with include_usage.")
    include_obfuscation: bool | None = told(None, IDLE)


class Sampling(BaseModel):
    """The fields that completions and chats share."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = told(None, "A served name; the first one by default.")
    stream: bool = told(False, "Answer in server-sent events, token by token.")
    stream_options: StreamOptions | None = told(
        None, "include_usage: the usage in a last chunk; continuous_usage_stats: in every chunk."
    )
    n: Whole = told(1, "Answers to each prompt.", minimum=1, maximum=MAX_N)
    best_of: Whole | None = told(
        None,
        "Candidates, of which the n most probable are answered; beams.",
        minimum=1,
        maximum=MAX_N,
    )
    seed: Whole | None = told(None, "Equal seeds draw equal tokens.")
    stop: str | list[str] | None = told(None, "Texts that end an answer.", maxItems=MAX_STOPS)
    temperature: float | None = told(None, "0 takes the most probable token.", minimum=0)
    top_p: float | None = told(
        None, "Draw among the most probable, up to this sum.", exclusiveMinimum=0, maximum=1
    )
    top_k: Whole | None = told(None, "Draw among so many; 0 or -1: all.", minimum=-1)
    min_p: float | None = told(
        None, "Least probability, as a share of the greatest.", minimum=0, maximum=1
    )
    presence_penalty: float | None = told(
        None, "Off the logits of tokens that the answer has.", minimum=-2, maximum=2
    )
    frequency_penalty: float | None = told(
        None, "The same, for each time that it has them.", minimum=-2, maximum=2
    )
    repetition_penalty: float | None = told(
        None, "Divides the logits of tokens of prompt and answer.", minimum=1e-6, maximum=1e6
    )
    logit_bias: dict[str, float] | None = told(
        None, "Token id to added logit.", propertyNames={"pattern": "^[0-9]+$"}
    )
    min_tokens: Whole = told(0, "Tokens before anything may end the answer.", minimum=0)
    stop_token_ids: list[Whole] = told(list, "Tokens that end an answer.", **_TOKENS)
    bad_words: list[str] = told(list, "Texts that no answer holds.", maxItems=MAX_BAD_WORDS)
    allowed_token_ids: list[Whole] | None = told(None, "No other tokens are drawn.", **_TOKENS)
    include_stop_str_in_output: bool = told(False, "Keep the stop string or token in the text.")
    ignore_eos: bool = told(False, "Go on after the end-of-sequence token.")
    skip_special_tokens: bool = told(True, "Leave special tokens out of the text.")
    spaces_between_special_tokens: bool = told(True, "Part special tokens that are shown.")
    prompt_logprobs: Whole | None = told(
        None, "Alternatives beside each prompt token; not in streams.", minimum=0
    )
    truncate_prompt_tokens: Whole | None = told(
        None, "Keep this many tokens of the prompt; -1: as many as fit.", minimum=-1
    )
    truncation_side: Literal["left", "right"] = told("left", "Where it is cut.")
    return_tokens_as_token_ids: bool = told(False, "Call tokens of logprobs `token_id:5`.")
    return_token_ids: bool = told(False, "Add the ids of prompt and answer.")
    session_id: str | None = Field(
        None,
        description="Requests of one session meet at one replica; or send X-Session-Id.",
        max_length=MAX_SESSION,
    )
    cache_salt: str = Field("", description="Parts the prefix cache.", max_length=1024)
    priority: Whole = told(0, "Lower goes first; needs --scheduling-policy priority.")
    echo: bool = told(False, "Begin the answer with the prompt; in chats the message continued.")
    use_beam_search: bool = told(False, "Search with best_of, or n, beams.")
    length_penalty: float = told(
        1.0, "Beams are compared by log probability / length ** length_penalty."
    )
    early_stopping: EarlyStopping = told(
        False, "When a search ends: as `early_stopping` of transformers."
    )
    stream_interval: Whole | None = Field(None, description=IDLE, ge=1)
    request_id: str | None = told(None, "Named in the answer's id.")
    user: Any = told(None, IDLE)


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Prompt = Field(description="A text, token ids, or a list of either.")
    max_tokens: Whole = told(16, "Most tokens of an answer; 0 with echo scores a text.", minimum=0)
    logprobs: Whole | None = told(None, "Alternatives beside each token.", minimum=0)
    add_special_tokens: bool = told(True, "Let the tokenizer put its own around a text.")

    @property
    def max_tokens_given(self) -> bool:
        """Whether the caller chose `max_tokens`; a default is cut to what fits."""
        return "max_tokens" in self.model_fields_set


class ChatTemplateFields(BaseModel):
    """What messages and template need."""

    model_config = ConfigDict(strict=True, frozen=True)

    messages: Messages = Field(description="The conversation; content is text, or parts of text.")
    add_generation_prompt: bool | None = told(
        None, "Open an answer; true, unless the final message is continued."
    )
    continue_final_message: bool = told(
        False, "Leave the final message open, so that the answer continues it."
    )
    add_special_tokens: bool = told(False, "The template has put them already.")
    chat_template_kwargs: dict[str, Any] = told(dict, "Variables for the template.")
    documents: list[dict[str, Any]] | None = told(None, "Passed to the template.")
    reasoning_effort: str | None = told(None, "Passed to the template.")


class ChatRequest(Sampling, ChatTemplateFields):
    """POST /v1/chat/completions."""

    max_tokens: Whole | None = told(None, "Older name of max_completion_tokens.", minimum=0)
    max_completion_tokens: Whole | None = Field(
        None, description="Most tokens of an answer; else all that fit.", ge=0
    )
    logprobs: bool = told(False, "Log probabilities of the answer's tokens.")
    top_logprobs: Whole = told(0, "Alternatives beside each token; with logprobs.", minimum=0)
    parallel_tool_calls: bool = told(True, IDLE)
    store: Any = told(None, IDLE)
    metadata: Any = told(None, IDLE)
    service_tier: Any = told(None, IDLE)
    prompt_cache_key: Any = told(None, IDLE)
    prompt_cache_options: Any = told(None, IDLE)
    prompt_cache_retention: Any = told(None, IDLE)
    safety_identifier: Any = told(None, IDLE)
    verbosity: Any = told(None, IDLE)
    prediction: Any = told(None, IDLE)
    include_reasoning: Any = told(None, IDLE)


class TokenizeTextRequest(BaseModel):
    """POST /tokenize, of a text."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(ChatTemplateFields):
    """POST /tokenize, of a chat."""

    model: str | None = None
    return_token_strs: bool = False


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = None
    tokens: list[Whole] = Field(json_schema_extra=_TOKENS)


class DrainRequest(BaseModel):
    """POST /cluster/drain: the node by its address, host name or id."""

    model_config = ConfigDict(strict=True, frozen=True)

    node: str


RequestBody = TypeVar("RequestBody", bound=BaseModel)


def parse(schema: type[RequestBody], body: object) -> RequestBody:
    """`body`, decoded JSON, as a request. Raises InvalidRequest that names the field at fault."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {json_kind(body)}")
    fields = {name: value for name, value in body.items() if value is not None}
    refuse_unbuilt_fields(fields)
    if log.isEnabledFor(logging.DEBUG) and (unknown := fields.keys() - schema.model_fields.keys()):
        log.debug("ignored unknown fields: %s", ", ".join(sorted(unknown)))
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


def json_kind(value: object) -> str:
    """What JSON calls the type of `value`, with an article."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    kinds |= {int: "an integer", float: "a number", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)


_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "finite_number": "a finite number",
}


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"] if part not in ("str", "list[str]")]
    name = ".".join(path)
    if first["type"] == "missing":
        return InvalidRequest(f"{name} is required", name)
    if expected := _EXPECTED.get(first["type"]):
        if path == ["stop"]:
            expected = "a string or a list of strings"
        return InvalidRequest(f"{name} must be {expected}, got {json_kind(first['input'])}", name)
    return InvalidRequest(f"{name}: {first['msg'].removeprefix('Input ')}", name)
