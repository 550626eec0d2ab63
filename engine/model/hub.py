"""Where a model lies: a local folder, or a snapshot of a hub repository. No torch."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import LoadError

DESCRIPTION = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""All but the weights: enough for a tokenizer, and for dummy weights."""

WANTED = (*DESCRIPTION, "*.safetensors")
UNWANTED = ("original/*", "consolidated*", "onnx/*", "*.msgpack")
FULL = (errno.ENOSPC, errno.EDQUOT)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def find_model(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    wanted: Sequence[str] = WANTED,
) -> Path:
    """The folder of `model`: a path, or a hub id that is fetched unless the cache holds it.

    `wanted` are the patterns of the files to fetch. With HF_HUB_OFFLINE set only the cache is
    asked. Raises LoadError that says what to do.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise LoadError(f"{model} is a file; give the folder that holds it and config.json")
    if model.startswith(("/", "./", "../", "~")) or not _HUB_ID.fullmatch(model):
        raise LoadError(
            f"no folder {model!r} (seen from {Path.cwd()}), and it is no hub id of the form "
            f"'owner/name'"
        )
    return _fetch(model, revision, download_dir, wanted)


def _fetch(
    model: str, revision: str | None, download_dir: str | None, wanted: Sequence[str]
) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise LoadError(
            f"no folder {model!r}; to fetch it from the hub: pip install huggingface_hub"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            model,
            revision=revision,
            cache_dir=download_dir,
            allow_patterns=list(wanted),
            ignore_patterns=list(UNWANTED),
        )
    except Exception as error:
        raise LoadError(_reason(error, model, revision)) from error
    return Path(folder)


def _reason(error: Exception, model: str, revision: str | None) -> str:
    """What went wrong at the hub, in plain words, and the way out."""
    from huggingface_hub import errors

    chain = list(_causes(error))
    statuses = [getattr(getattr(e, "response", None), "status_code", None) for e in chain]
    full = [e for e in chain if isinstance(e, OSError) and e.errno in FULL]
    token = "set HF_TOKEN to a token of https://huggingface.co/settings/tokens"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the hub model {model!r} is gated: accept its terms at "
            f"https://huggingface.co/{model}, then {token}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub model {model!r} has no revision {revision!r}; see its branches and tags"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no folder and no hub model {model!r}: check the name; if it is private, {token}"
    if 401 in statuses or 403 in statuses:
        return f"the hub refused the token, or the lack of one, for {model!r}: {token}"
    if full:
        return (
            f"the disk is full while fetching {model!r} ({full[0]}); make room, or choose another "
            f"place with download_dir"
        )
    if any(map(_is_offline, chain)):
        return (
            f"{_why_offline()}, and {model!r} is neither a folder nor in the cache; give a local "
            f"folder, or fetch it once with a network: hf download {model}"
        )
    return f"fetching {model!r} failed: {type(error).__name__}: {error}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_offline(error: BaseException) -> bool:
    """Whether no answer came; the hub's client has its own names for that in each version."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "TransportError"})


def _why_offline() -> str:
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
