"""The README says what the code does."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from pydantic.fields import FieldInfo
from shoal.cluster import connection, conversation, open_files, prompts, protocol, sender, web
from shoal.cluster.config import Key, keys
from shoal.cluster.unbuilt import UNBUILT
from shoal.engine import confined, request

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def settings_table() -> str:
    """Every setting, by group, as the README shows it."""
    groups: dict[str, list[Key]] = {}
    for key in keys().values():
        groups.setdefault(key.group, []).append(key)
    lines = ["| flag | default | what it does |", "|---|---|---|"]
    for group, members in groups.items():
        lines.append(f"| **{group}** | | |")
        lines += [f"| {flag(key)} | {default(key)} | {cell(key.help)} |" for key in members]
    return "\n".join(lines)


def flag(key: Key) -> str:
    return "`MODEL`" if key.name == "model" else f"`--{key.name.replace('_', '-')}`"


def default(key: Key) -> str:
    if key.default in (None, "", ()):
        return ""
    if isinstance(key.default, bool):
        return "on" if key.default else "off"
    if isinstance(key.default, tuple):
        return f"`{' '.join(map(str, key.default))}`"
    return f"`{key.default}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def test_the_table_of_settings_is_that_of_the_code() -> None:
    found = re.search(r"<!-- settings.*?-->\n(.*?)\n?<!-- /settings -->", README, re.DOTALL)
    assert found
    assert found[1] == settings_table(), f"put this into README.md:\n{settings_table()}"


def fields_table() -> str:
    """Every field of a request, as the README shows it: what is shared, then each route's own."""
    parts = {
        "Both routes": protocol.Sampling,
        "`/v1/chat/completions`": protocol.ChatRequest,
        "`/v1/completions`": protocol.CompletionRequest,
    }
    lines = ["| field | default | what it does |", "|---|---|---|"]
    for title, schema in parts.items():
        lines.append(f"| **{title}** | | |")
        shared = () if schema is protocol.Sampling else protocol.Sampling.model_fields
        for name, field in schema.model_fields.items():
            told = (field.description or "").removeprefix(protocol.IDLE)
            if name not in shared and told:
                lines.append(f"| `{name}` | {field_default(field)} | {cell(told)} |")
    idle = [
        n for n, f in protocol.ChatRequest.model_fields.items() if f.description == protocol.IDLE
    ]
    refused = {name: why.reason for name, why in UNBUILT.items()}
    reasons = {reason: [n for n in refused if refused[n] == reason] for reason in refused.values()}
    lines += ["", f"Taken, and change nothing: {listed(idle)}. So does a field that nobody knows."]
    lines += ["", "Refused with 400, unless their value asks for nothing:", ""]
    lines += [f"* {listed(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines)


def field_default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value in (None, "", [], {}) or field.is_required() else f"`{json.dumps(value)}`"


def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def test_the_table_of_fields_is_that_of_the_code() -> None:
    found = re.search(r"<!-- fields.*?-->\n(.*?)\n?<!-- /fields -->", README, re.DOTALL)
    assert found
    assert found[1] == fields_table(), f"put this into README.md:\n{fields_table()}"


def test_the_table_of_errors_has_every_code() -> None:
    """Codes stand behind the status in every HTTPFailure and in the table of kinds."""
    codes = set()
    for path in (ROOT / "cluster").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("HTTPFailure", "_Kind"):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
                codes |= {t for t in texts if isinstance(t, str) and re.fullmatch("[a-z_]+", t)}
    codes -= {"invalid_request_error", "rate_limit_error", "server_error", "http_error"}
    (table,) = re.findall(r"\| status \| code .*?\n\n", README, re.DOTALL)
    cells = [row.split("|")[2] for row in table.strip().splitlines()[2:]]
    shown = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}
    assert shown == codes


def test_the_table_of_bounds_has_the_numbers_of_the_code() -> None:
    found = re.search(r"<!-- bounds.*?-->\n(.*?)<!-- /bounds -->", README, re.DOTALL)
    assert found
    settings = keys()
    bounds = {
        "requests that wait": settings["max_waiting"].default,
        "a request's body": settings["max_body_bytes"].default,
        "its line and headers": connection.MAX_HEAD_BYTES,
        "prompts in a request": prompts.MAX_PROMPTS,
        "messages of": conversation.MAX_MESSAGES,
        "`n`, `best_of`": request.MAX_N,
        "`logprobs`": settings["max_logprobs"].default,
        "`stop`": request.MAX_STOPS,
        "`bad_words`": request.MAX_BAD_WORDS,
        "rendering": confined.CPU_S,
        "what waits": sender.MAX_WAITING_BYTES,
        "an idle": web.KEEP_ALIVE_S,
        "the end": int(str(settings["shutdown_timeout"].default).removesuffix(".0")),
        "connections": open_files.FEW,
    }
    rows = [row.removeprefix("| ") for row in found[1].splitlines()]
    for beginning, number in bounds.items():
        (row,) = (row for row in rows if row.startswith(beginning))
        assert f"{number:,}" in row, beginning
    words = [row for row in rows if f"{request.MAX_WORD_LENGTH:,} characters" in row]
    assert len(words) == 2
    assert f"{confined.MEMORY_BYTES >> 30} GiB" in found[1]


def test_every_file_it_points_to_is_there() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text())
        assert [link for link in links if not (ROOT / link).exists()] == [], name
