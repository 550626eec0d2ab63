"""Which of a checkpoint's files hold its weights, by their names alone. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ..errors import LoadError


class Format(NamedTuple):
    """A way to store weights.

    `listing` names the shards, `single` is the whole checkpoint in one file, `pattern` matches what
    else the files may be called.
    """

    listing: str
    single: str
    pattern: str


SAFETENSORS = Format(
    "model.safetensors.index.json",
    "model.safetensors",
    r"(?!consolidated|adapter_model)[^/]*\.safetensors",
)
PICKLED = Format("pytorch_model.bin.index.json", "pytorch_model.bin", r"pytorch_model[^/]*\.bin")
FORMATS = {"auto": (SAFETENSORS, PICKLED), "safetensors": (SAFETENSORS,), "pt": (PICKLED,)}
"""By `load_format`, the preferred one first."""

_OTHERS = (
    (
        r"(.*/)?[^/]*\.gguf",
        "a file for llama.cpp; take the repository it was made from, or write its weights out with "
        "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE).save_pretrained(NEW)",
    ),
    (
        r"(.*/)?consolidated[^/]*\.(pth|pt|safetensors)",
        "weights in the layout of the model's maker; take the repository's form for transformers "
        "(often its name with -hf), or convert with the script of transformers that is called "
        "convert_*_weights_to_hf.py",
    ),
    (
        r"[^/]*\.(h5|msgpack)",
        "weights for TensorFlow or Flax; convert them with transformers 4: "
        "from_pretrained(FOLDER, from_tf=True or from_flax=True).save_pretrained(NEW)",
    ),
    (
        r"adapter_model\.(safetensors|bin)",
        "an adapter, not a model; its adapter_config.json names the model that it belongs to",
    ),
    (r"pytorch_model[^/]*\.bin", "which load_format auto or pt reads"),
    (SAFETENSORS.pattern, "which load_format auto or safetensors reads"),
    (r".*\.(bin|pth|pt|onnx|safetensors)", "which is not read; convert it with save_pretrained"),
)
"""What else may be there, and what to do with it."""


def choose_weights(
    folder: Path, names: Collection[str], load_format: str = "auto", of: str | None = None
) -> tuple[str, ...]:
    """The files among `names` that hold the weights; an index is read in `folder`.

    `names` are what a folder or a repository holds, with slashes for what lies deeper; `of` is what
    errors call it. Raises LoadError where there are no weights in a format that is read, saying
    what there is.
    """
    for form in FORMATS[load_format]:
        if form.listing in names:
            return _shards(folder / form.listing)
        if form.single in names:
            return (form.single,)
        if found := sorted(name for name in names if re.fullmatch(form.pattern, name)):
            return tuple(found)
    wanted = " or ".join(form.single for form in FORMATS[load_format])
    where = of or str(folder)
    for pattern, advice in _OTHERS:
        if found := sorted(name for name in names if re.fullmatch(pattern, name)):
            raise LoadError(f"{where} holds no {wanted}, but {found[0]}: {advice}")
    held = ", ".join(sorted(names)[:8]) or "nothing"
    raise LoadError(f"{where} holds no weights ({wanted}), only {held}; was the download complete?")


def _shards(index: Path) -> tuple[str, ...]:
    """The files that an index names."""
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = tuple(sorted({str(name) for name in table.values()}))
    except FileNotFoundError as error:
        raise LoadError(f"{index} is missing; fetch the checkpoint again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{index} is no index of weights ({error!r}); fetch the checkpoint again"
        ) from error
    outside = [name for name in names if name.startswith("/") or ".." in Path(name).parts]
    if outside or not names:
        raise LoadError(f"{index} names {outside or 'no files'}; fetch the checkpoint again")
    return names


def names_in(folder: Path) -> list[str]:
    """The files of a checkpoint folder, relative, two levels deep."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return sorted(path.relative_to(folder).as_posix() for path in found if not path.is_dir())


def is_complete(folder: Path, load_format: str = "auto") -> bool:
    """Whether config.json and all files of the weights are there."""
    names = names_in(folder)
    if "config.json" not in names:
        return False
    if load_format == "dummy":
        return True
    try:
        chosen = choose_weights(folder, names, load_format)
    except LoadError:
        return False
    return all((folder / name).is_file() for name in chosen)
