"""Messages of a chat, checked before a template reads them."""

from __future__ import annotations

from typing import Any

from ..engine.errors import InvalidRequest
from .protocol import json_kind

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_MESSAGES = 16_384
"""Of a conversation, and parts of one message: far more than any has, so that reading them is never
long."""

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_OTHER_PARTS = {
    "image": "images",
    "input_audio": "audio",
    "audio": "audio",
    "video": "video",
    "file": "files",
    "input_file": "files",
}


def plain_messages(messages: object) -> list[Message]:
    """Messages without nulls, `content` a string or a list of text parts.

    `developer` speaks as `system`, which every template knows. Raises InvalidRequest that names the
    message and the field.
    """
    if not isinstance(messages, list):
        raise InvalidRequest(f"messages must be a list, got {json_kind(messages)}", "messages")
    _check_count(messages, "messages")
    if not messages:
        raise InvalidRequest("messages must hold at least one message", "messages")
    return [_plain(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain(message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object, got {json_kind(message)}", where)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{where}.role must be one of {', '.join(ROLES)}; got {role!r}", f"{where}.role"
        )
    kept = {name: value for name, value in message.items() if value is not None}
    kept["role"] = "system" if role == "developer" else role
    kept["content"] = _content(message.get("content"), f"{where}.content")
    _check_calls(kept.get("tool_calls", []), f"{where}.tool_calls")
    if message.get("content") is None and role != "assistant":
        raise InvalidRequest(f"{where}.content is required of a {role} message", f"{where}.content")
    return kept


def _check_count(entries: list[object], where: str) -> None:
    if len(entries) > MAX_MESSAGES:
        raise InvalidRequest(
            f"{where} takes at most {MAX_MESSAGES} entries, got {len(entries)}", where
        )


def content_text(message: Message) -> str:
    """All text of a message from `plain_messages`."""
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _content(content: object, where: str) -> str | list[Message]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where} must be a string or a list of parts, got {json_kind(content)}", where
        )
    _check_count(content, where)
    return [{"type": "text", "text": _part(p, f"{where}[{i}]")} for i, p in enumerate(content)]


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequest(f"{where} must be an object, got {json_kind(part)}", where)
    kind = part.get("type")
    for beginning, thing in _OTHER_PARTS.items():
        if isinstance(kind, str) and kind.startswith(beginning):
            raise InvalidRequest(f"{where} is of type {kind}: {thing} are not built yet", where)
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise InvalidRequest(f"{where}.type must be text, got {kind!r}", f"{where}.type")
    text = part.get(key)
    if not isinstance(text, str):
        raise InvalidRequest(
            f"{where}.{key} must be a string, got {json_kind(text)}", f"{where}.{key}"
        )
    return text


def _check_calls(calls: object, where: str) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequest(f"{where} must be a list of objects", where)
