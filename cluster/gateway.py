"""The gateway: every route of the door, as one ASGI application.

CORS ── Guard (id, key, count) ── FastAPI (routes, description) ── Answer (bare ASGI)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import __version__
from . import routes_cluster, routes_status
from .census import Census
from .config import ServeConfig
from .errors import HTTPFailure
from .guard import Guard
from .link import Router
from .openapi import answers_of, body_of, describe, docs_page, parameters_of
from .pool import Pool
from .routes_generate import create_chat_completion, create_completion
from .routes_tokenize import detokenize, tokenize, tokenizer_info
from .serving import Handler, Serving, answering, failure_response

Action = Callable[[Serving, Request], Awaitable[Response]]


class Route(NamedTuple):
    """One route and what the description says of it."""

    method: str
    path: str
    action: Action
    answer: str
    bodies: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    streams: bool = False
    head: bool = False


ROUTES = (
    Route("GET", "/", routes_status.root, "About", head=True),
    Route("GET", "/v1/models", routes_status.list_models, "Models"),
    Route("GET", "/v1/models/{model:path}", routes_status.retrieve_model, "Model"),
    Route(
        "POST",
        "/v1/completions",
        create_completion,
        "Completion",
        ("CompletionRequest",),
        streams=True,
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        create_chat_completion,
        "ChatCompletion",
        ("ChatRequest",),
        streams=True,
    ),
    Route("POST", "/tokenize", tokenize, "Tokens", ("TokenizeTextRequest", "TokenizeChatRequest")),
    Route("POST", "/detokenize", detokenize, "Text", ("DetokenizeRequest",)),
    Route("GET", "/tokenizer_info", tokenizer_info, "TokenizerInfo", query=("model",)),
    Route("GET", "/health", routes_status.health, "Health", head=True),
    Route("GET", "/-/healthz", routes_status.healthz, "text", head=True),
    Route("GET", "/cluster", routes_cluster.cluster, "Cluster"),
    Route("POST", "/cluster/drain", routes_cluster.drain, "Drain", ("DrainRequest",)),
    Route("GET", "/version", routes_status.version, "Version"),
    Route("GET", "/metrics", routes_status.metrics, "text"),
)


class Gateway:
    """The door of a server as an ASGI application, and what it holds beside the event loop."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        await self._app(scope, receive, send)

    def stop(self) -> None:
        """Begin nothing on other replicas any more: the server ends with what runs."""
        self._serving.failover.stop()

    def serve_only(self, versions: Mapping[str, str | None]) -> None:
        """A configuration serves these, by all their names: see `Failover`."""
        self._serving.failover.serve_only(versions)

    def close(self) -> None:
        """End the processes of its own, once no request comes any more."""
        self._serving.close()


def build_gateway(
    config: ServeConfig,
    router: Router,
    pool: Pool | None = None,
    census: Census | None = None,
    rank: int = 0,
) -> Gateway:
    """The door of a server: routes, keys, CORS and figures over the replicas that `router` knows.

    May be built before any model is loaded; it answers 503 till then. Without a `pool` it speaks
    for no other gateway's figures, without a `census` it knows of no other; `rank` is its number
    among them.
    """
    serving = Serving(config, router, pool or Pool(router), census or Census(router), rank)
    shown = not config.disable_fastapi_docs
    app = FastAPI(
        title="shoal",
        version=__version__,
        openapi_url="/openapi.json" if shown else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for route in ROUTES:
        _add(app, serving, route)
    if shown:
        app.openapi = lambda: _description(app)  # type: ignore[method-assign]
        app.add_route("/docs", _docs, include_in_schema=False)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(Exception, _failed)
    guarded = Guard(app, config.api_key, serving.metrics, config.root_path)
    outermost = _with_cors(guarded, config) if config.allowed_origins else guarded
    return Gateway(outermost, serving)


def _add(app: FastAPI, serving: Serving, route: Route) -> None:
    handler = answering(_bound(route.action, serving))
    app.add_api_route(
        route.path,
        handler,
        methods=[route.method],
        summary=(route.action.__doc__ or "").splitlines()[0],
        operation_id=route.action.__name__,
        response_model=None,
        responses=answers_of(route.answer, route.streams),
        openapi_extra=body_of(*route.bodies)
        if route.bodies
        else parameters_of(route.path, route.query),
    )
    if route.head:
        app.add_route(route.path, handler, methods=["HEAD"], include_in_schema=False)


def _bound(action: Action, serving: Serving) -> Handler:
    async def handler(request: Request) -> Response:
        return await action(serving, request)

    return handler


def _description(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        servers = [{"url": app.root_path}] if app.root_path else None
        generated = get_openapi(
            title=app.title, version=app.version, routes=app.routes, servers=servers
        )
        app.openapi_schema = describe(generated, app.version)
    return app.openapi_schema


async def _docs(request: Request) -> Response:
    return HTMLResponse(docs_page())


async def _unrouted(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, as error objects."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        failure = HTTPFailure(405, "method_not_allowed", f"{where}: allowed is {allowed}")
    elif error.status_code == 404:
        described = ("/docs lists them",) if request.app.openapi_url else ()
        failure = HTTPFailure(404, "not_found", "; ".join((f"{where}: no such route", *described)))
    else:
        failure = HTTPFailure(error.status_code, "http_error", str(error.detail))
    response = failure_response(failure)
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    """What was not raised on purpose; `Guard` gets it too, and logs it."""
    return failure_response(error)


def _with_cors(app: ASGIApp, config: ServeConfig) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=config.allowed_origins,
        allow_credentials=config.allow_credentials,
        allow_methods=config.allowed_methods,
        allow_headers=config.allowed_headers,
        expose_headers=("x-request-id", "retry-after"),
    )
