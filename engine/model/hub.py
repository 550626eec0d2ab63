"""Where a model lies: a local folder, or a snapshot of a hub repository. No torch.

A name that is no folder is a repository of the Hugging Face Hub, or of ModelScope when
SHOAL_USE_MODELSCOPE or VLLM_USE_MODELSCOPE is true. Files that run (`*.py`) are never fetched.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from ..errors import LoadError
from .formats import choose_weights, is_complete
from .node_lock import alone_on_this_node
from .repository import CachedModel as CachedModel
from .repository import Progress, Repository

log = logging.getLogger(__name__)

SWITCHES = ("SHOAL_USE_MODELSCOPE", "VLLM_USE_MODELSCOPE")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_found: dict[tuple[str, str | None, str], Path] = {}
"""What this process was told before, so that its tokenizer, facts and weights are of one commit."""

_asking = threading.Lock()


def fetch(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    load_format: str = "auto",
    on_progress: Progress | None = None,
) -> Path:
    """The folder of `model`, whole: a path, or a hub id that is fetched unless the cache holds it.

    `download_dir` stands for the hub's own cache. `on_progress` is called with (bytes fetched,
    bytes to fetch) from several threads; without it a terminal gets a bar. Processes that ask at
    once wait for one download. Without a network, a complete snapshot in the cache is taken. Raises
    LoadError that says what to do.
    """
    return find_model(
        model,
        revision=revision,
        download_dir=download_dir,
        load_format=load_format,
        on_progress=on_progress,
    )


def find_model(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    load_format: str = "auto",
    weights: bool = True,
    on_progress: Progress | None = None,
) -> Path:
    """As `fetch`; without `weights` (or to load dummies) only what describes the model.

    That is enough for a tokenizer and for the model's facts.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise LoadError(f"{model} is a file; give the folder that holds it and config.json")
    if model.startswith(("/", "./", "../", "~")) or not _HUB_ID.fullmatch(model):
        raise LoadError(
            f"no folder {model!r} (seen from {Path.cwd()}), and it is no hub id of the form "
            f"'owner/name'{_nearest_folder(folder)}"
        )
    weights = weights and load_format != "dummy"
    repository = _repository(model, revision, download_dir)
    key = (model, revision, str(repository.place))
    with _asking:
        known = _found.get(key)
        if known and known.is_dir() and (not weights or is_complete(known, load_format)):
            return known
        if known:
            repository = _repository(model, _commit(known) or revision, download_dir)
        _found[key] = _obtain(repository, model, load_format, weights, on_progress)
        return _found[key]


def cached_models(download_dir: str | None = None) -> list[CachedModel]:
    """Every model in the cache, complete or not, by name; `download_dir` as in `fetch`."""
    if uses_modelscope():
        from . import hub_modelscope

        found = hub_modelscope.cached_models(download_dir)
    else:
        from . import hub_huggingface

        found = hub_huggingface.cached_models(download_dir)
    return sorted(found, key=lambda model: (model.name, model.revision))


def uses_modelscope() -> bool:
    """Whether hub ids are ModelScope's."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in SWITCHES)


def free_bytes(place: Path) -> int:
    """Free bytes where `place` is or will be."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _repository(model: str, revision: str | None, download_dir: str | None) -> Repository:
    if uses_modelscope():
        from .hub_modelscope import ModelScopeRepository

        return ModelScopeRepository(model, revision, download_dir)
    from .hub_huggingface import HuggingFaceRepository

    return HuggingFaceRepository(model, revision, download_dir)


def _obtain(
    repository: Repository,
    model: str,
    load_format: str,
    weights: bool,
    on_progress: Progress | None,
) -> Path:
    """From the hub, or from the cache where the hub does not answer."""
    try:
        with alone_on_this_node(repository.place, model):
            sizes = repository.sizes()
            folder = repository.describe()
            if weights:
                _download(repository, model, folder, sizes, load_format, on_progress)
            return folder
    except LoadError:
        raise
    except Exception as error:
        held = repository.cached()
        if held is not None and (not weights or is_complete(held, load_format)):
            log.info("%s: the hub did not answer (%s); taking %s", model, error, held)
            return held
        part = f" (the cache holds a part of it: {held})" if held is not None else ""
        near = _nearest_name(repository, model)
        raise LoadError(repository.reason(error) + part + near) from error


def _download(
    repository: Repository,
    model: str,
    folder: Path,
    sizes: Mapping[str, int],
    load_format: str,
    on_progress: Progress | None,
) -> None:
    chosen = choose_weights(folder, sizes, load_format, f"the hub model {model!r}")
    if gone := [name for name in chosen if name not in sizes]:
        raise LoadError(f"the hub model {model!r} lacks {gone[0]}, which its own index names")
    missing = [name for name in chosen if not (folder / name).is_file()]
    needed = sum(sizes[name] for name in missing)
    free = free_bytes(repository.place)
    if needed > free:
        raise LoadError(
            f"{model!r} needs {_gb(needed)} more on disk, and {repository.place} has {_gb(free)} "
            f"free; make room, or choose another place with --download-dir or HF_HOME"
        )
    if missing:
        repository.download(folder, missing, on_progress)


def _commit(folder: Path) -> str | None:
    """The commit of a snapshot in the Hugging Face cache."""
    return folder.name if folder.parent.name == "snapshots" else None


def _gb(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"


def _nearest_folder(folder: Path) -> str:
    """What the user may have meant among the folders beside it."""
    parent = folder.parent
    if not parent.is_dir():
        return f"; there is no folder {str(parent)!r} either"
    try:
        beside = [path.name for path in parent.iterdir() if path.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.6)
    return f"; did you mean {str(parent / near[0])!r}?" if near else ""


def _nearest_name(repository: Repository, model: str) -> str:
    """A folder or a cached model that is called nearly so."""
    if Path(model).parent.is_dir() and (near := _nearest_folder(Path(model))):
        return near
    try:
        held = [c.name for c in cached_models(str(repository.place)) if c.complete]
    except Exception:
        return ""  # a cache that cannot be listed must not hide what went wrong
    close = difflib.get_close_matches(model, held, n=1, cutoff=0.8)
    return f"; the cache holds {close[0]!r}" if close and close[0] != model else ""
