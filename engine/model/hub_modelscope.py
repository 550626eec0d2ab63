"""A repository of ModelScope, fetched into its cache; needs the extra `modelscope`. No torch.

MODELSCOPE_CACHE, MODELSCOPE_API_TOKEN and MODELSCOPE_ENDPOINT are read by its client;
HF_HUB_OFFLINE keeps it off the network as it does the other hub.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from ..errors import LoadError
from .formats import is_complete
from .repository import DESCRIPTION, UNWANTED, CachedModel, Progress, causes, is_full

TOKEN = "set MODELSCOPE_API_TOKEN to a token of https://modelscope.cn/my/myaccesstoken"


class Offline(Exception):
    """HF_HUB_OFFLINE is set."""


def client() -> Any:
    """ModelScope's own client. Raises LoadError that names the extra.

    It is the part of modelscope that imports no torch.
    """
    try:
        from modelscope_hub import HubApi  # type: ignore
    except ImportError as error:
        raise LoadError(
            "SHOAL_USE_MODELSCOPE or VLLM_USE_MODELSCOPE is true, and modelscope is not installed: "
            "pip install 'shoal[modelscope]', or unset the variable to use the Hugging Face Hub"
        ) from error
    return HubApi()


class ModelScopeRepository(NamedTuple):
    """See `hub.Repository`."""

    model: str
    revision: str | None
    download_dir: str | None

    @property
    def place(self) -> Path:
        """`download_dir`, or the hub's own cache."""
        return _place(self.download_dir)

    def cached(self) -> Path | None:
        """The snapshot in the cache."""
        try:
            return self._snapshot(local_files_only=True)
        except LoadError:
            raise
        except Exception:  # each version has another class for it
            return None

    def sizes(self) -> Mapping[str, int]:
        """The repository's files and their bytes."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise Offline
        files = client().list_repo_files(self.model, "model", revision=self.revision)
        return {file.path: int(file.size or 0) for file in files}

    def describe(self) -> Path:
        """Fetch all but weights and code."""
        return self._snapshot(allow_patterns=list(DESCRIPTION), ignore_patterns=list(UNWANTED))

    def download(self, folder: Path, names: Sequence[str], on_progress: Progress | None) -> None:
        """Fetch files of the snapshot `folder`."""
        heard: dict[str, Any] = {}
        if on_progress is not None:
            sizes = self.sizes()
            total = sum(sizes[name] for name in names)
            heard["progress_callbacks"] = [_callback(on_progress, total)]
        self._snapshot(allow_patterns=[glob.escape(name) for name in names], **heard)

    def _snapshot(self, **options: Any) -> Path:
        folder = client().download_repo(
            self.model, "model", revision=self.revision, cache_dir=self.download_dir, **options
        )
        return Path(folder)

    def reason(self, error: Exception) -> str:
        """What went wrong at the hub, in plain words, and the way out."""
        chain = list(causes(error))
        kinds = {kind.__name__ for e in chain for kind in type(e).__mro__}
        answers = [
            response for e in chain if (response := getattr(e, "response", None)) is not None
        ]
        said = {getattr(answer, "status_code", None) for answer in answers}
        model, place = self.model, self.place
        if full := [e for e in chain if is_full(e)]:
            return (
                f"the disk is full while fetching {model!r} into {place} ({full[0]}); make room, "
                f"or choose another place with --download-dir or MODELSCOPE_CACHE"
            )
        if isinstance(error, Offline):
            return (
                f"HF_HUB_OFFLINE is set, and {model!r} is neither a folder nor whole in the cache "
                f"{place}; fetch it where there is a network: HF_HUB_OFFLINE=0 shoal pull {model}"
            )
        if "NotExistError" in kinds or 404 in said:
            at = f" at revision {self.revision!r}" if self.revision else ""
            return (
                f"no folder and no ModelScope model {model!r}{at}: check the name (owner/name); if "
                f"it is private, {TOKEN} that may read it"
            )
        if kinds & {"AuthenticationError", "PermissionDeniedError"} or said & {401, 403}:
            return f"ModelScope refused access to {model!r}: {TOKEN} that may read it"
        if kinds & {"NetworkError", "ConnectionError"}:
            return (
                f"ModelScope cannot be reached, and {model!r} is neither a folder nor whole in the "
                f"cache {place}; give a local folder, or check the network"
            )
        return f"fetching {model!r} from ModelScope failed: {type(error).__name__}: {error}"


def cached_models(download_dir: str | None) -> Iterator[CachedModel]:
    """Every snapshot of a model in the cache."""
    for folder in sorted(_place(download_dir).glob("models/*--*/snapshots/*")):
        if folder.is_dir():
            yield CachedModel(
                name=folder.parent.parent.name.replace("--", "/", 1),
                revision=folder.name,
                refs=(),
                path=folder,
                num_bytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
                complete=is_complete(folder),
            )


def _place(download_dir: str | None) -> Path:
    own = os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope"
    return Path(download_dir or own).expanduser()


def _callback(on_progress: Progress, total: int) -> type:
    """A class that modelscope makes once a file and tells the bytes that came."""
    lock = Lock()
    done = 0

    class Callback:
        def __init__(self, filename: str, file_size: int) -> None:
            pass

        def update(self, size: int) -> None:
            nonlocal done
            with lock:
                done += size
                on_progress(done, total)

        def end(self) -> None:
            pass

    return Callback
