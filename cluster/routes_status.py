"""Models, health, version, figures: what a gateway says of itself."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import PlainTextResponse, Response

from .. import __version__
from .exposition import CONTENT_TYPE, exposition
from .link import ModelCard
from .serving import Serving, json_response

_SERVING = ("ready", "degraded")


async def list_models(serving: Serving, http: HTTPRequest) -> Response:
    """Every served name."""
    cards = serving.router.cards()
    models = [_model(name, card) for card in cards for name in card.names]
    return json_response({"object": "list", "data": models})


async def retrieve_model(serving: Serving, http: HTTPRequest) -> Response:
    """One served name."""
    name = http.path_params["model"]
    return json_response(_model(name, serving.card(name)))


def _model(name: str, card: ModelCard) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "shoal",
        "root": card.model,
        "parent": None,
        "max_model_len": card.max_model_len,
    }


async def health(serving: Serving, http: HTTPRequest) -> Response:
    """`status`, of all and of each model: loading, ready, degraded or down; 200 where requests are
    answered, else 503.
    """
    status = serving.router.status()
    answer = {"status": status, "models": serving.router.statuses()}
    return json_response(answer, 200 if status in _SERVING else 503)


async def healthz(serving: Serving, http: HTTPRequest) -> Response:
    """`success` while requests are answered, as probes of Ray Serve expect."""
    status = serving.router.status()
    if status in _SERVING:
        return PlainTextResponse("success")
    return PlainTextResponse(status, 503)


async def version(serving: Serving, http: HTTPRequest) -> Response:
    """The version of shoal."""
    return json_response({"version": __version__})


async def metrics(serving: Serving, http: HTTPRequest) -> Response:
    """Figures of all gateways and replicas, for Prometheus."""
    totals = await serving.pool.totals()
    vllm_names = serving.config.vllm_metrics
    figures = exposition(totals, serving.router.links(), vllm_names=vllm_names)
    return Response(figures, headers={"content-type": CONTENT_TYPE})


async def root(serving: Serving, http: HTTPRequest) -> Response:
    """What lives here."""
    return json_response({"name": "shoal", "version": __version__, "api": "/v1", "docs": "/docs"})
