"""Where a model lies: a local folder, or a snapshot of a hub repository. No torch."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import LoadError

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
UNWANTED = ("original/*", "consolidated*", "onnx/*", "*.msgpack")
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
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
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
    if status in (401, 403):
        return f"the hub refused the token ({status}) for {model!r}: {token}"
    if _is_offline(error):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return (
            f"{why}, and {model!r} is neither a folder nor in the cache; give a local folder, or "
            f"fetch it once with a network: hf download {model}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full while fetching {model!r} ({error.filename or error}); make room, "
            f"or choose another place with download_dir"
        )
    return f"fetching {model!r} failed: {type(error).__name__}: {error}"


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return True
    return isinstance(error, ConnectionError) or type(error).__name__ in (
        "ConnectError",
        "ConnectTimeout",
    )
