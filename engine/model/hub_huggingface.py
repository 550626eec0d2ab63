"""A repository of the Hugging Face Hub, fetched into its cache. No torch.

HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_ENDPOINT are read by huggingface_hub itself.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import constants, errors
from tqdm import tqdm

from .formats import is_complete
from .repository import DESCRIPTION, UNWANTED, CachedModel, Progress, causes, is_full

ANCHORS = ("config.json", "tokenizer.json", "tokenizer_config.json")
"""One of these tells where a snapshot lies in the cache."""

ANSWER_S = 10.0
TOKEN = "set HF_TOKEN to a token of https://huggingface.co/settings/tokens"


class HuggingFaceRepository(NamedTuple):
    """See `hub.Repository`."""

    model: str
    revision: str | None
    download_dir: str | None

    @property
    def place(self) -> Path:
        """`download_dir`, or the hub's own cache."""
        return Path(self.download_dir or constants.HF_HUB_CACHE).expanduser()

    def cached(self) -> Path | None:
        """The snapshot in the cache."""
        for name in ANCHORS:
            found = huggingface_hub.try_to_load_from_cache(
                self.model, name, cache_dir=self.place, revision=self.revision
            )
            if isinstance(found, str):
                return Path(found).parent
        return None

    def sizes(self) -> Mapping[str, int]:
        """The repository's files and their bytes."""
        info = huggingface_hub.HfApi().model_info(
            self.model, revision=self.revision, files_metadata=True, timeout=ANSWER_S
        )
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def describe(self) -> Path:
        """Fetch all but weights and code."""
        return self._snapshot(DESCRIPTION, UNWANTED, _unheard)

    def download(self, folder: Path, names: Sequence[str], on_progress: Progress | None) -> None:
        """Fetch files of the snapshot `folder`."""
        at = self._replace(revision=folder.name)
        at._snapshot([glob.escape(name) for name in names], (), on_progress)

    def _snapshot(
        self, wanted: Sequence[str], unwanted: Sequence[str], on_progress: Progress | None
    ) -> Path:
        bar: dict[str, Any] = {"tqdm_class": _bar(on_progress)} if on_progress else {}
        folder = huggingface_hub.snapshot_download(
            self.model,
            revision=self.revision,
            cache_dir=self.place,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
            **bar,
        )
        return Path(folder)

    def reason(self, error: Exception) -> str:
        """What went wrong at the hub, in plain words, and the way out."""
        chain = list(causes(error))
        return _refusal(self, chain) or _breakdown(self, chain)


def cached_models(download_dir: str | None) -> Iterator[CachedModel]:
    """Every snapshot of a model in the cache."""
    place = Path(download_dir or constants.HF_HUB_CACHE).expanduser()
    if not place.is_dir():
        return
    for repository in huggingface_hub.scan_cache_dir(place).repos:
        if repository.repo_type != "model":
            continue
        for revision in repository.revisions:
            yield CachedModel(
                name=repository.repo_id,
                revision=revision.commit_hash,
                refs=tuple(sorted(revision.refs)),
                path=revision.snapshot_path,
                num_bytes=revision.size_on_disk,
                complete=is_complete(revision.snapshot_path),
            )


def _refusal(at: HuggingFaceRepository, chain: list[BaseException]) -> str | None:
    """What the hub itself said no to."""
    model = at.model
    answers = [response for e in chain if (response := getattr(e, "response", None)) is not None]
    said = {answer.status_code for answer in answers}
    if _any(chain, errors.GatedRepoError):
        then = "as the owner of your token" if huggingface_hub.get_token() else f"then {TOKEN}"
        return (
            f"the hub model {model!r} is gated: accept its terms at "
            f"{constants.ENDPOINT}/{model}, {then}"
        )
    if _any(chain, errors.RevisionNotFoundError):
        return (
            f"the hub model {model!r} has no revision {at.revision!r}; see its branches and tags "
            f"at {constants.ENDPOINT}/{model}/tree/main"
        )
    if 401 in said and huggingface_hub.get_token():
        return (
            f"the hub refused the token for {model!r}: it is wrong or has expired; {TOKEN}, or "
            f"unset it for a public model"
        )
    if _any(chain, errors.RepositoryNotFoundError):
        return (
            f"no folder and no hub model {model!r}: check the name (owner/name); if it is private, "
            f"{TOKEN} that may read it"
        )
    if said & {401, 403}:
        return f"the hub refused access to {model!r}: {TOKEN} that may read it"
    if 429 in said:
        return f"the hub limits how often it is asked, and {model!r} must wait; {TOKEN}, or wait"
    return None


def _breakdown(at: HuggingFaceRepository, chain: list[BaseException]) -> str:
    """What broke on the way."""
    model = at.model
    full = [e for e in chain if is_full(e)]
    if full:
        return (
            f"the disk is full while fetching {model!r} into {at.place} ({full[0]}); make room, or "
            f"choose another place with --download-dir or HF_HOME"
        )
    if _any(chain, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set, and {model!r} is neither a folder nor whole in the cache "
            f"{at.place}; fetch it where there is a network: HF_HUB_OFFLINE=0 shoal pull {model}"
        )
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    if names & {"ConnectError", "ConnectTimeout", "ConnectionError"}:
        return (
            f"the hub at {constants.ENDPOINT} cannot be reached, and {model!r} is neither a folder "
            f"nor whole in the cache {at.place}; give a local folder, check the network, or name "
            f"a mirror with HF_ENDPOINT"
        )
    if names & {"TransportError", "TimeoutException"}:
        return (
            f"the download of {model!r} broke off ({_brief(chain[0])}); start again: files that "
            f"are whole are kept"
        )
    return f"fetching {model!r} failed: {_brief(chain[0])}"


def _brief(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _any(chain: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(error, kind) for error in chain)


def _unheard(done: int, total: int) -> None:
    pass


def _bar(on_progress: Progress) -> type[tqdm[Any]]:
    """A progress bar for huggingface_hub that draws nothing and tells its bytes."""
    furthest = 0

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            drawn = super().update(n)
            # Several bars may count the same bytes: as they come, and as they are written.
            if self.unit == "B" and self.total and self.n >= furthest:
                furthest = int(self.n)
                on_progress(furthest, int(self.total))
            return drawn

    return Bar
