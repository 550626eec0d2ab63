"""Chat templates: messages to prompt text, in a sandbox, as transformers renders them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .errors import ConfigError, InvalidRequest

_RESUME = "|>resume-here<|"
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A model's templates by name ("default" is the one for plain chat), and its special tokens.

    `special_tokens` maps names such as `bos_token` to their text, for the templates to write.
    """

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of one conversation.

        `chat_template` is a template's source or the name of one of the model's. Raises
        InvalidRequest for what the template refuses or cannot render.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt cannot both be true: the last "
                "message either goes on or is closed; set add_generation_prompt to false",
                "add_generation_prompt",
            )
        template = _compiled(self._choose(chat_template, tools))
        chat = [_message(message, template) for message in messages]
        if not chat:
            raise InvalidRequest("messages must hold at least one message", "messages")
        if continue_final_message:
            _mark_end(chat[-1])
        text = template.render(
            {
                **self.special_tokens,
                **_plain(variables, "chat_template_kwargs"),
                "messages": chat,
                "tools": _plain(tools, "tools"),
                "documents": _plain(documents, "documents"),
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_mark(text) if continue_final_message else text

    def _choose(self, wanted: str | None, tools: object) -> str:
        if wanted is not None:
            return self.sources.get(wanted, wanted)
        if tools is not None and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" in self.sources:
            return self.sources["default"]
        if self.sources:
            raise InvalidRequest(
                f"this model has chat templates named {', '.join(sorted(self.sources))} and no "
                f"default one; name one of them as chat_template",
                "chat_template",
            )
        raise InvalidRequest(
            "this model has no chat template: start it with --chat-template FILE, or use "
            "/v1/completions with the prompt written out",
            "messages",
        )


@dataclass(frozen=True, slots=True)
class _Compiled:
    """`takes_parts`: it loops over a message's content; `takes_text`: it accepts a plain string."""

    template: jinja2.Template
    takes_parts: bool
    takes_text: bool

    def render(self, variables: dict[str, Any]) -> str:
        try:
            return self.template.render(variables)
        except Exception as error:
            said = str(error) or type(error).__name__
            raise InvalidRequest(
                f"the chat template cannot render these messages: {said}", "messages"
            ) from error


def template_text(given: str) -> str:
    """The text of a template that was given as a file or as itself; itself again, given that text.

    Raises ConfigError where there is no such file, or it does not parse.
    """
    path = Path(given).expanduser()
    inline = _is_template(given)
    if not inline and not path.is_file():
        raise ConfigError(
            f"chat_template: there is no file {given!r}, and it is no template either: that has "
            "{{ or {% in it",
            "chat_template",
        )
    try:
        text = given if inline else path.read_text(encoding="utf-8")
        _environment().parse(text)
    except Exception as error:
        raise ConfigError(
            f"chat_template: {'the template' if inline else path} does not parse: {error}",
            "chat_template",
        ) from error
    return text if _is_template(text) else f"{text}\n"


def _is_template(given: str) -> bool:
    return any(mark in given for mark in ("{{", "{%", "{#", "\n"))


@lru_cache(maxsize=64)
def _compiled(source: str) -> _Compiled:
    environment = _environment()
    try:
        tree = environment.parse(source)
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidRequest(
            f"the chat template does not parse: line {error.lineno}: {error.message}",
            "chat_template",
        ) from error
    holders = {"content"} | {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_content(node.node, set())
    }
    return _Compiled(
        template,
        takes_parts=any(_is_content(node.iter, holders) for node in tree.find_all(nodes.For)),
        takes_text=any(
            node.name == "string" and _is_content(node.node, holders)
            for node in tree.find_all(nodes.Test)
        ),
    )


def _is_content(node: nodes.Node, holders: set[str]) -> bool:
    """Whether an expression is a message's content, or a name that holds it."""
    match node:
        case nodes.Name(name=name):
            return name in holders
        case nodes.Getattr(attr="content"):
            return True
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Call(node=nodes.Getattr(attr="get"), args=[nodes.Const(value="content"), *_]):
            return True
    return False


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """A sandbox without a loader, so that no template can name a file."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=lambda *args, **kwargs: dict(*args, **kwargs),
        namespace=_namespace,
    )
    environment.globals.pop("lipsum", None)
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it only opens a scope."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _SafeNamespace(Namespace):
    """A namespace that takes no underscored names, which could shadow Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    values = dict(*args, **kwargs)
    for name in values:
        _check_name(name)
    return _SafeNamespace(values)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _message(message: Mapping[str, Any], template: _Compiled) -> dict[str, Any]:
    """A message as templates expect it: nulls gone, and its content a string or a list of parts."""
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"a message must be an object, got {message!r}", "messages")
    plain = {k: _plain(v, "messages") for k, v in message.items() if v is not None}
    content = plain.get("content")
    if isinstance(content, list):
        plain["content"] = content if template.takes_parts else _joined(content)
    elif isinstance(content, str) and template.takes_parts and not template.takes_text:
        plain["content"] = [{"type": "text", "text": content}]
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    for call in plain.get("tool_calls") or ():
        _read_arguments(call)
    return plain


def _joined(parts: list[Any]) -> str:
    texts = []
    for part in parts:
        fields = part if isinstance(part, dict) else {"text": part}
        text = fields.get("text")
        if not isinstance(text, str):
            found = fields.get("type", part)
            raise InvalidRequest(
                f"content parts must be text; {found!r} is not built yet", "messages"
            )
        texts.append(text)
    return "\n".join(texts)


def _read_arguments(call: Any) -> None:
    """Give templates a call's arguments as an object, where the API carries them as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError:
            return
        if isinstance(arguments, dict):
            function["arguments"] = arguments


def _plain(value: Any, param: str) -> Any:
    """A copy in JSON's own types: a template gets no object whose methods it could call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            strip: Callable[[Any], Any] = kind.__str__ if kind is str else kind
            return strip(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, param) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, param) for item in value]
    raise InvalidRequest(f"{param} must be JSON data; it holds a {type(value).__name__}", param)


def _mark_end(message: dict[str, Any]) -> None:
    """Append the mark to the last message's text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _RESUME + " "
        return
    texts = [p for p in content or () if isinstance(p, dict) and isinstance(p.get("text"), str)]
    if not texts:
        raise InvalidRequest(
            "continue_final_message needs a last message with text to go on from", "messages"
        )
    texts[-1]["text"] += _RESUME + " "


def _cut_at_mark(text: str) -> str:
    end = text.rfind(_RESUME)
    if end < 0:
        raise InvalidRequest(
            "continue_final_message: the chat template leaves out the last message's text",
            "continue_final_message",
        )
    # A template that trims the message took the space after the mark: trim before it too.
    kept = text.startswith(_RESUME + " ", end)
    return text[:end] if kept else text[:end].rstrip()
