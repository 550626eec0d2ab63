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

from ..engine.errors import InvalidRequest
from .unbuilt import refuse_unbuilt

log = logging.getLogger(__name__)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer; 5.0 is one too, as some languages write it."""

_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}

Prompt = Annotated[
    Any,
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS}]}),
]
EarlyStopping = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "boolean"}, {"const": "never"}]})]
Messages = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {"anyOf": [{"type": "string"}, {"type": "array"}]},
                },
                "required": ["role"],
            },
        }
    ),
]


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(strict=True, frozen=True)

    include_usage: bool | None = Field(None, description="Send the usage in a last chunk.")
    continuous_usage_stats: bool | None = Field(None, description="Send it in every chunk.")
    include_obfuscation: bool | None = Field(None, description="Taken and ignored.")


class Sampling(BaseModel):
    """The fields that completions and chats share."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = Field(None, description="A served name; the first one by default.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Whole = Field(1, description="Answers to each prompt.")
    best_of: Whole | None = Field(
        None, description="Candidates, of which the n most probable are answered; beams."
    )
    seed: Whole | None = Field(None, description="Equal seeds draw equal tokens.")
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token id to added logit.")
    min_tokens: Whole = 0
    stop_token_ids: list[Whole] = Field(default_factory=list)
    bad_words: list[str] = Field(default_factory=list)
    allowed_token_ids: list[Whole] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    prompt_logprobs: Whole | None = None
    truncate_prompt_tokens: Whole | None = Field(
        None, description="Keep this many tokens of the prompt; -1: as many as fit."
    )
    truncation_side: Literal["left", "right"] = "left"
    return_tokens_as_token_ids: bool = False
    return_token_ids: bool = False
    cache_salt: str = Field("", description="Parts the prefix cache.", max_length=1024)
    priority: Whole = 0
    echo: bool = False
    use_beam_search: bool = Field(False, description="Search with best_of, or n, beams.")
    length_penalty: float = Field(
        1.0, description="Beams are compared by log probability / length ** length_penalty."
    )
    early_stopping: EarlyStopping = Field(
        False, description="When a search ends: as `early_stopping` of transformers."
    )
    stream_interval: Whole | None = Field(None, description="Taken and ignored.", ge=1)
    request_id: str | None = Field(None, description="Named in the answer's id.")
    user: Any = Field(None, description="Taken and ignored.")


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Prompt
    max_tokens: Whole = 16
    logprobs: Whole | None = Field(None, description="Alternatives beside each chosen token.")
    add_special_tokens: bool = True

    @property
    def max_tokens_given(self) -> bool:
        """Whether the caller chose `max_tokens`; a default is cut to what fits."""
        return "max_tokens" in self.model_fields_set


class ChatTemplateFields(BaseModel):
    """What messages and template need."""

    model_config = ConfigDict(strict=True, frozen=True)

    messages: Messages
    add_generation_prompt: bool | None = Field(
        None, description="Open an answer; true, unless the final message is continued."
    )
    continue_final_message: bool = Field(
        False, description="Leave the final message open, so that the answer continues it."
    )
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = Field(None, description="Passed to the template.")


class ChatRequest(Sampling, ChatTemplateFields):
    """POST /v1/chat/completions."""

    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    logprobs: bool = False
    top_logprobs: Whole = 0
    parallel_tool_calls: bool = Field(True, description="Taken and ignored.")
    store: Any = Field(None, description="Taken and ignored.")
    metadata: Any = Field(None, description="Taken and ignored.")
    service_tier: Any = Field(None, description="Taken and ignored.")
    prompt_cache_key: Any = Field(None, description="Taken and ignored.")
    safety_identifier: Any = Field(None, description="Taken and ignored.")
    verbosity: Any = Field(None, description="Taken and ignored.")
    prediction: Any = Field(None, description="Taken and ignored.")
    include_reasoning: Any = Field(None, description="Taken and ignored.")


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
    tokens: list[Whole]


RequestBody = TypeVar("RequestBody", bound=BaseModel)


def parse(schema: type[RequestBody], body: object) -> RequestBody:
    """`body`, decoded JSON, as a request. Raises InvalidRequest that names the field at fault."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {json_kind(body)}")
    fields = {name: value for name, value in body.items() if value is not None}
    refuse_unbuilt(fields)
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
