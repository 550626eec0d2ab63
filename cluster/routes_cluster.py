"""The application's processes, for those who run it: `GET /cluster`, `POST /cluster/drain`."""

from __future__ import annotations

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from ..engine.errors import InvalidRequest
from .protocol import DrainRequest
from .serving import Serving, json_response


async def cluster(serving: Serving, http: HTTPRequest) -> Response:
    """Replicas with their ranks, and gateways with their streams; any gateway tells of all."""
    return json_response(await serving.census.overview(serving.failover.num_streams))


async def drain(serving: Serving, http: HTTPRequest) -> Response:
    """Begin to empty a node: its replicas are replaced elsewhere and their streams move."""
    body = await serving.read(http, DrainRequest)
    if serving.census.registry is None:
        raise InvalidRequest("this server runs without Ray: it has no node to drain", "node")
    return json_response(await serving.census.registry.drain(body.node))
