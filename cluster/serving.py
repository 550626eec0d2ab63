"""What the routes of one gateway share: models, tokenizers, seeds, figures, reading bodies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..engine.admission import Seeds
from ..engine.errors import InvalidRequest, ShoalError, UnknownModel
from ..engine.text import Tokenizer
from .census import Census
from .config import ModelConfig, ServeConfig
from .errors import HTTPFailure, failure
from .failover import Failover
from .link import ModelCard, Router
from .pool import Pool
from .protocol import RequestBody, parse

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

LOADING_RETRY_S = 5.0
_LONG_BODY = 2**20
"""Bytes from which on a body is read beside the event loop, one at a time. Its decoder lets nothing
else run meanwhile: 1 ms a MB of text, 10 ms of ids, up to 0.1 s of what is nothing but brackets.
Between two the loop has its turn, and replicas hear of it."""

LEFT = 499
"""The status, in logs and figures, of a request whose client did not wait for one."""


class Serving:
    """The state of one gateway, the one of this `rank` among those of its server."""

    def __init__(
        self, config: ServeConfig, router: Router, pool: Pool, census: Census, rank: int = 0
    ) -> None:
        self.config = config
        self.router = router
        self.census = census
        self.pool = pool
        self.metrics = pool.metrics
        self.failover = Failover(
            router,
            self.metrics,
            timeout_s=config.failover_timeout,
            grace_s=config.drain_grace,
            max_failovers=config.max_failovers,
        )
        self._reading_long = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, "shoal-tokenizer")
        self._tokenizers: dict[tuple[str, str, str | None], Future[Tokenizer]] = {}
        for model in config.models:
            self._load(model, *model.engine.tokenizer_place)  # while the engine loads
        # Gateways that all drew the same would answer a request k times with fewer texts than k.
        source = str(rank) if config.gateways > 1 else ""
        self._seeds = {model.name: Seeds(model.engine.seed, source) for model in config.models}

    def card(self, name: str | None) -> ModelCard:
        """The card of a served name; without one, of the only model.

        Raises UnknownModel, InvalidRequest, and HTTPFailure while the model cannot answer.
        """
        model = self._named(name)
        for card in self.router.cards():
            if card.names[0] == model.name:
                return card
        if self.router.statuses()[model.name] == "loading":
            message = f"the model {model.name} is still loading; /health tells when it is ready"
            raise HTTPFailure(503, "model_loading", message, LOADING_RETRY_S)
        message = f"no engine of {model.name} is alive"
        raise HTTPFailure(503, "engine_unavailable", message, LOADING_RETRY_S)

    def model(self, card: ModelCard) -> ModelConfig:
        """How the model of a card is configured."""
        return self.config.model(card.names[0])

    def draw_seed(self, card: ModelCard) -> int:
        """A seed for a request that has none."""
        return self._seeds[card.names[0]].draw()

    def _named(self, name: str | None) -> ModelConfig:
        models = self.config.models
        served = ", ".join(f"`{name}`" for model in models for name in model.served_model_name)
        if name is None:
            if len(models) > 1:
                raise InvalidRequest(
                    f"`model` is missing, and several models are served here: {served}.", "model"
                )
            return models[0]
        try:
            return self.config.model(name)
        except KeyError:
            raise UnknownModel(
                f"The model `{name}` does not exist. Models served here: {served}.", "model"
            ) from None

    async def tokenizer(self, card: ModelCard) -> Tokenizer:
        """The tokenizer of a card, loaded once, beside the event loop: that of this gateway's own
        configuration, or while the model is replaced, the other one's.
        """
        loading = self._tokenizers.get((card.names[0], *card.vocabulary))
        if loading is None or (loading.done() and loading.exception()):
            loading = self._load(self.model(card), *card.vocabulary)
        # To await what is there would let every other request that came with this one go first.
        return loading.result() if loading.done() else await asyncio.wrap_future(loading)

    def close(self) -> None:
        """End what its tokenizers hold."""
        for loading in self._tokenizers.values():
            if not loading.cancel() and loading.exception() is None:
                loading.result().close()

    def _load(self, model: ModelConfig, path: str, revision: str | None) -> Future[Tokenizer]:
        engine = model.engine
        loading = self._loader.submit(
            Tokenizer.load,
            path,
            revision=revision,
            download_dir=engine.download_dir,
            chat_template=engine.chat_template,
            confined=True,
        )
        self._tokenizers[model.name, path, revision] = loading
        return loading

    async def read(self, request: Request, schema: type[RequestBody]) -> RequestBody:
        """The request's body as `schema`, whatever its content type says. Raises InvalidRequest."""
        body = await self._read_body(request)
        if len(body) < _LONG_BODY:
            return parse(schema, _decoded(body))
        async with self._reading_long:
            return await asyncio.to_thread(lambda: parse(schema, _decoded(body)))

    async def read_json(self, request: Request) -> Any:
        """The request's body, decoded. Raises InvalidRequest, and HTTPFailure for a long one."""
        return _decoded(await self._read_body(request))

    async def _read_body(self, request: Request) -> bytes:
        limit = self.config.max_body_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_long(limit)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise _too_long(limit)
        return bytes(body)


def _decoded(body: bytes) -> Any:
    if not body.strip():
        raise InvalidRequest("the body is empty; it must be a JSON object")
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise InvalidRequest("the body is not usable JSON: it is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def answering(handler: Handler) -> Handler:
    """`handler`, whose errors become answers; for a client that has left, one that nobody hears."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ShoalError as error:
            return failure_response(error)
        except ClientDisconnect:
            return Response(status_code=LEFT)

    return answered


def failure_response(error: Exception) -> Response:
    """An error object as a response."""
    told = failure(error)
    response = Response(told.body, told.status, media_type="application/json")
    for name, value in told.headers:
        response.headers[name.decode()] = value.decode()
    return response


def json_response(answer: Any, status: int = 200) -> Response:
    """Any JSON answer."""
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def _too_long(limit: int) -> HTTPFailure:
    return HTTPFailure(
        413,
        "body_too_large",
        f"the body is longer than {limit} bytes; the server's bound is --max-body-bytes",
    )
