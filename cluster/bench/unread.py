"""Which flags each data set reads, and the refusal of one that it would drop in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...engine.errors import ConfigError
from .options import DATA

_ALWAYS = ("dataset_name", "seed")
_DRAWN = (
    *("input_len", "output_len", "random_range_ratio"),
    *("random_prefix_len", "shared_prefix_len"),
)
_FILE = " with --dataset-path"
_OF_FILES = ("dataset_path", "output_len", "disable_shuffle")
_READ: Mapping[str, tuple[str, ...]] = {
    "random": _DRAWN,
    "sharegpt": ("output_len", "sharegpt_output_len", "random_prefix_len"),
    "prefix_repetition": (
        *("input_len", "output_len", "random_range_ratio"),
        *("prefix_repetition_prefix_len", "prefix_repetition_suffix_len"),
        *("prefix_repetition_num_prefixes", "prefix_repetition_output_len"),
    ),
    "multi_turn": (*_DRAWN, "num_turns", "think_time"),
}
_READ_WITH_FILE: Mapping[str, tuple[str, ...]] = {
    "sharegpt": (*_OF_FILES, "sharegpt_output_len"),
    "custom": (*_OF_FILES, "custom_output_len"),
    "multi_turn": (*_OF_FILES, "think_time"),
}


def refuse_unread(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a flag that is not as by default and that the data set does not read.

    A data set that is none is not refused here.
    """
    name = given["dataset_name"]
    with_file = given["dataset_path"] and name in _READ_WITH_FILE
    read = (_READ_WITH_FILE if with_file else _READ).get(name)
    if read is None:
        return
    for option in DATA:
        value = given.get(option.name, option.default)
        if value != option.default and option.name not in (*_ALWAYS, *read):
            raise ConfigError(
                f"{option.flag} is nothing that --dataset-name {name}{_FILE if with_file else ''} "
                "reads: remove it, or take a data set that does: "
                f"{', '.join(_readers(option.name))}",
                option.name,
            )


def _readers(flag: str) -> list[str]:
    """The data sets that read a flag."""
    without = [name for name, read in _READ.items() if flag in read]
    return without + [name + _FILE for name, read in _READ_WITH_FILE.items() if flag in read]
