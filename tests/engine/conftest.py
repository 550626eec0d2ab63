"""Tokenizers and a model that several test files load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal.engine.llm import LLM
from shoal.engine.text import Tokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tokenizer of each kind."""
    from .vocabularies import save_all

    return save_all(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    """The same, loaded."""
    return {name: Tokenizer.load(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random Qwen3 with tokenizer, template and sampling defaults."""
    from .tiny_qwen3 import save_qwen3

    path = str(tmp_path_factory.mktemp("qwen3"))
    save_qwen3(path)
    return path


@pytest.fixture(scope="module")
def llm(folder: str) -> Iterator[LLM]:
    """That model, running."""
    from .tiny_qwen3 import KEYS

    with LLM(folder, **KEYS) as made:
        yield made
