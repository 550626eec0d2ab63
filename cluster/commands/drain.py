"""`shoal drain`: empty a node before it is taken away, without breaking a stream."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Secret, Url, client

Node = Annotated[str, typer.Argument(help="Address, host name or id of the node.")]


def drain(node: Node, url: Url = None, api_key: Secret = None) -> None:
    """Empty a node: its replicas are replaced elsewhere, and running streams move."""
    told = client(url, api_key).call("/cluster/drain", {"node": node})
    print(
        f"{told['node']} is being drained: replicas there take their leave once others are ready "
        "elsewhere; `shoal status --watch` shows how far it is. Ray there ends when it is empty, "
        "and `ray start` brings the node back"
    )
