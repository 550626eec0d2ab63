"""Where a tokenizer comes from: a folder or the hub, its files read as transformers reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tokenizers

from .errors import LoadError
from .model.hub import find_model
from .template import template_text

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_OF_A_MACHINE = (
    "vocab_file",
    "merges_file",
    "tokenizer_file",
    "special_tokens_map_file",
    "name_or_path",
)
"""Entries of tokenizer_config.json that hold paths of whoever saved it."""

_PATTERNS = ("*token*", "*.model", "*.tiktoken", "vocab*", "merges.txt", "*.jinja", "config.json")


class Encoded(Protocol):
    """What an encoding gives."""

    @property
    def ids(self) -> list[int]:
        """The token ids."""
        ...


class Backend(Protocol):
    """The part of `tokenizers.Tokenizer` that is used, which slow tokenizers are made to share."""

    def encode(self, sequence: Any, *, add_special_tokens: bool = True) -> Encoded:
        """A text to ids."""
        ...

    def encode_batch_fast(
        self, input: list[Any], *, add_special_tokens: bool = True
    ) -> Sequence[Encoded]:
        """Texts to ids; other threads run meanwhile."""
        ...

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """Ids to text."""
        ...

    def id_to_token(self, id: int) -> str | None:
        """The piece of the vocabulary, or None past its end."""
        ...

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """How many pieces there are."""
        ...

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """The added tokens by id."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What a folder holds.

    `templates` are chat templates by name, `settings` what `Tokenizer.info` tells.
    """

    backend: Backend
    special_tokens: dict[str, str]
    templates: dict[str, str]
    settings: dict[str, Any]


def read(
    path: str, revision: str | None, download_dir: str | None, chat_template: str | None
) -> TokenizerFiles:
    """The tokenizer of a local folder or hub id.

    `chat_template`, a file or a template's own text, replaces the model's. Raises LoadError, and
    ConfigError for the template.
    """
    # Else the library starts a thread for each CPU, at its first batch, and warns whoever forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = find_model(path, revision=revision, download_dir=download_dir, weights=False)
    config = _json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        backend = _fast(folder, config)
    else:
        backend, config = _slow(folder, config)
    templates = _templates(folder, config)
    if chat_template is not None:
        templates = {"default": template_text(chat_template)}
    special = {n: _content(config[n]) for n in NAMED_TOKENS if config.get(n) is not None}
    settings = _settings(config, backend, templates)
    return TokenizerFiles(
        backend=backend, special_tokens=special, templates=templates, settings=settings
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} must hold an object, got {type(found).__name__}")
    return found


def _fast(folder: Path, config: dict[str, Any]) -> Backend:
    """tokenizer.json, with the special tokens that only the other files name."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise LoadError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    listed = config.get("added_tokens_decoder")
    if listed is None:
        for name, value in _json(folder / "special_tokens_map.json").items():
            config[name] = value
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for _, token in sorted((listed or {}).items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            known[token["content"]] = tokenizers.AddedToken(**token)
            backend.add_tokens([known[token["content"]]])
    # Named tokens are special whatever tokenizer.json says of them.
    for value in _named(config):
        token = known.get(_content(value))
        if token is None or not token.special:
            backend.add_special_tokens([_special(value, token)])
    return backend


def _named(config: dict[str, Any]) -> list[Any]:
    """Every token that the configuration calls special, as text or as an object with flags."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    named = [config.get(name) for name in NAMED_TOKENS]
    named += extra.values() if isinstance(extra, dict) else extra
    return [value for value in named if value is not None]


def _special(value: Any, known: Any) -> tokenizers.AddedToken:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for name in flags:
        if isinstance(value, dict):
            flags[name] = bool(value.get(name, flags[name]))
        elif known is not None:
            flags[name] = getattr(known, name)
    return tokenizers.AddedToken(_content(value), special=True, **flags)


def _content(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Files go before what tokenizer_config.json says."""
    files = {"default": folder / "chat_template.jinja"}
    files.update({f.stem: f for f in sorted(folder.glob("additional_chat_templates/*.jinja"))})
    found = {n: f.read_text(encoding="utf-8") for n, f in files.items() if f.is_file()}
    if found:
        return found
    given = config.get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, dict):
        return given
    return {entry["name"]: entry["template"] for entry in given or ()}


def _settings(
    config: dict[str, Any], backend: Backend, templates: dict[str, str]
) -> dict[str, Any]:
    """tokenizer_config.json with each token as its text, and what it may leave to other files."""
    told = {name: _texts(value) for name, value in config.items() if name not in _OF_A_MACHINE}
    added = backend.get_added_tokens_decoder()
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": None,
        **told,
        "added_tokens_decoder": {str(id): added[id].content for id in sorted(added)},
        "chat_template": templates.get("default"),
    }


def _texts(value: Any) -> Any:
    """`value` with every token's object replaced by the token's text."""
    if isinstance(value, dict):
        if isinstance(value.get("content"), str):
            return value["content"]
        return {name: _texts(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return value


def _slow(folder: Path, config: dict[str, Any]) -> tuple[Backend, dict[str, Any]]:
    """A tokenizer that only transformers can read; most turn into a fast one there."""
    if not any(f.is_file() and f.name != "config.json" for p in _PATTERNS for f in folder.glob(p)):
        raise LoadError(
            f"no tokenizer in {folder}: expected tokenizer.json, or a vocabulary that transformers "
            f"reads; name another folder with --tokenizer"
        )
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        _refuse_code(folder, config, error)
        raise LoadError(f"the tokenizer in {folder} cannot be read: {_first(error)}") from error
    config = {**config, **found.special_tokens_map}
    backend = getattr(found, "backend_tokenizer", None)
    return (backend if backend is not None else _SlowBackend(found)), config


def _refuse_code(folder: Path, config: dict[str, Any], error: Exception) -> None:
    """Raise LoadError naming the file that would have to run."""
    classes = (config.get("auto_map") or {}).get("AutoTokenizer")
    named = next((n for n in (classes if isinstance(classes, list) else [classes]) if n), None)
    if named is None:
        return
    repository, _, dotted = str(named).rpartition("--")
    file = dotted.rpartition(".")[0].replace(".", "/") + ".py"
    raise LoadError(
        f"the tokenizer in {folder} is known only to code of its repository: {file}"
        f"{f' of {repository}' if repository else ''} would have to run, and trust_remote_code is "
        f"off: code from a model's repository is never run; take a repository with a "
        f"tokenizer.json, and name it with --tokenizer"
    ) from error


def _first(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Ids(NamedTuple):
    ids: list[int]


class _SlowBackend:
    """A tokenizer of transformers written in Python, behind the Backend interface."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> _Ids:
        return _Ids(self._tokenizer.encode(sequence, add_special_tokens=add_special_tokens))

    def encode_batch_fast(self, input: list[str], *, add_special_tokens: bool = True) -> list[_Ids]:
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in input]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(
            self._tokenizer.decode(
                list(ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        )

    def id_to_token(self, id: int) -> str | None:
        if not 0 <= id < len(self._tokenizer):
            return None
        token = self._tokenizer.convert_ids_to_tokens(id)
        return None if token is None else str(token)

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return len(self._tokenizer) if with_added_tokens else int(self._tokenizer.vocab_size)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return dict(self._tokenizer.added_tokens_decoder)
