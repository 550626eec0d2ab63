"""`shoal pull`: fetch a model before it is served."""

from __future__ import annotations

from typing import Annotated

import typer

from ..banner import Progress
from ..config import BUNDLED, bundled_model

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, as owner/name.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.", metavar="TEXT")]
Place = Annotated[
    str | None, typer.Option(help="Where to keep it (default: the hub's own cache).", metavar="DIR")
]
Format = Annotated[str, typer.Option(help="auto, safetensors or pt.", metavar="TEXT")]


def pull(
    model: Name, revision: Revision = None, download_dir: Place = None, load_format: Format = "auto"
) -> None:
    """Fetch a model from the hub into the cache, and print its folder."""
    if model == BUNDLED:
        print(bundled_model())
        return
    from ...engine.model.hub import fetch

    progress = Progress()
    with progress.phase(f"fetch {model}"):
        folder = fetch(
            model,
            revision=revision,
            download_dir=download_dir,
            load_format=load_format,
            on_progress=progress.advance,
        )
    print(folder)
