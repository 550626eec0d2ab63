"""The README, and the pages that it points to, say what the code does."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from pydantic import BaseModel
from shoal.cluster import (
    answer,
    connection,
    conversation,
    open_files,
    prompts,
    sampling,
    sender,
    turnstile,
    web,
)
from shoal.cluster.config import Autoscaling, Key, keys, model_keys
from shoal.cluster.environment import READ
from shoal.cluster.protocol import ChatRequest, CompletionRequest
from shoal.cluster.resolve import resolve
from shoal.cluster.unbuilt import UNBUILT
from shoal.engine import bounds, confined
from shoal.engine.model.hub import SWITCHES
from shoal.engine.request import SamplingParams

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "configs" / "SETTINGS.md").read_text()
REQUESTS = (ROOT / "configs" / "REQUESTS.md").read_text()


def settings_table() -> str:
    """Every setting, by group, as configs/SETTINGS.md shows it."""
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
    found = re.search(r"<!-- settings.*?-->\n(.*?)\n?<!-- /settings -->", SETTINGS, re.DOTALL)
    assert found
    assert found[1] == settings_table(), f"put this into configs/SETTINGS.md:\n{settings_table()}"


def test_the_table_of_environment_variables_has_all_that_are_read() -> None:
    section = SETTINGS.split("## Environment variables\n")[1]
    rows = [row.split("|")[1:3] for row in re.findall(r"\| .*`.*", section)]
    here = {name: means for names, means in rows for name in re.findall(r"`(\w+)`", names)}
    assert {name for name in here if name.startswith(("SHOAL_", "VLLM_"))} == {*READ, *SWITCHES}
    for name, (key, _) in READ.items():
        assert f"`--{key.replace('_', '-')}`" in here[name], name


def schema_of_models() -> str:
    """What an item of `models` may hold: whole groups, then single keys of others."""
    own = model_keys().values()
    groups = {key.group for key in own} - {k.group for k in keys().values() if k not in own}
    named = ", ".join(group for group in dict.fromkeys(k.group for k in own) if group in groups)
    single = ", ".join(f"`{k.name.replace('_', '-')}`" for k in own if k.group not in groups)
    return f"An item may hold the keys of the groups {named} above, and {single}."


def test_the_schema_of_models_is_that_of_the_code() -> None:
    assert schema_of_models() in SETTINGS.splitlines(), (
        f"put this into configs/SETTINGS.md:\n{schema_of_models()}"
    )


def test_its_configurations_are_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        file = tmp_path / "serve.yaml"
        file.write_text(block)
        assert resolve(["--config", str(file)], {}).config.port == 9000


def test_the_table_of_request_fields_has_every_field() -> None:
    models: tuple[type[BaseModel], ...] = (CompletionRequest, ChatRequest)
    fields = {name for model in models for name in model.model_fields} | UNBUILT.keys()
    fields |= {field.name for field in dataclasses.fields(SamplingParams)}
    section = REQUESTS.split("# Requests\n")[1].split("\n## ")[0]
    shown = set(re.findall(r"`(\w+)`", section))
    assert fields - {"model", "bad_words_ids"} - shown == set()


def test_the_table_of_errors_has_every_code() -> None:
    """Codes stand behind the status in every HTTPFailure and in the table of kinds."""
    codes = set()
    for path in (ROOT / "cluster").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("HTTPFailure", "_Kind"):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
                codes |= {t for t in texts if isinstance(t, str) and re.fullmatch("[a-z_]+", t)}
    codes |= {turnstile.CODE}
    codes -= {"invalid_request_error", "rate_limit_error", "server_error", "http_error"}
    (table,) = re.findall(r"\| status \| code .*?\n\n", REQUESTS, re.DOTALL)
    cells = [row.split("|")[2] for row in table.strip().splitlines()[2:]]
    shown = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}
    assert shown == codes


def test_the_table_of_bounds_has_the_numbers_of_the_code() -> None:
    found = re.search(r"<!-- bounds.*?-->\n(.*?)<!-- /bounds -->", REQUESTS, re.DOTALL)
    assert found
    settings = keys()
    stated = {
        "requests that wait": settings["max_waiting"].default,
        "a request's body": settings["max_body_bytes"].default,
        "its line and headers": connection.MAX_HEAD_BYTES,
        "prompts in a request": prompts.MAX_PROMPTS,
        "ids and characters of": sampling.MAX_SENT,
        "messages of": conversation.MAX_MESSAGES,
        "`n`, `best_of`": bounds.MAX_N,
        "`logprobs`": settings["max_logprobs"].default,
        "`stop`": bounds.MAX_STOPS,
        "`stop_token_ids` with": bounds.MAX_BEAM_STOPS,
        "`bad_words`": bounds.MAX_BAD_WORDS,
        "rendering": confined.CPU_S,
        "what waits": sender.MAX_WAITING_BYTES,
        "log probabilities that wait": answer.MAX_WAITING_NAMES,
        "an idle": web.KEEP_ALIVE_S,
        "the end": int(str(settings["shutdown_timeout"].default).removesuffix(".0")),
        "connections": open_files.FEW,
    }
    rows = [row.removeprefix("| ") for row in found[1].splitlines()]
    for beginning, number in stated.items():
        (row,) = (row for row in rows if row.startswith(beginning))
        assert f"{number:,}" in row, beginning
    words = [row for row in rows if f"{bounds.MAX_WORD_LENGTH:,} characters" in row]
    assert len(words) == 2
    assert f"{confined.MEMORY_BYTES >> 30} GiB" in found[1]


def test_every_file_it_points_to_is_there() -> None:
    pages = [f"configs/{path.name}" for path in (ROOT / "configs").glob("*.md")]
    for name in ("README.md", "CONTRIBUTING.md", *pages):
        folder = (ROOT / name).parent
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text())
        assert [link for link in links if not (folder / link).exists()] == [], name


def test_the_table_of_autoscaling_has_every_key_and_its_default() -> None:
    section = SETTINGS.split("## Replicas that follow the load\n")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    shown = {name: row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    for name, field in Autoscaling.model_fields.items():
        default = field.default
        assert default is None or f"| {default:g} |" in shown[name].replace("1.0", "1"), name
