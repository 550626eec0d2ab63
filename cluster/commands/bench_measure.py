"""`shoal bench serve`, `latency` and `throughput`: their flags from tables, their lines read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
import typer.core

from ...engine.errors import ConfigError
from ..bench.options import (
    LATENCY,
    SERVE,
    THROUGHPUT,
    Option,
    refuse_unknown,
    spellings,
    unfolded,
)
from ..exits import FAILED
from .options import Model, Secret, Url, client

_METAVARS = {int: "N", float: "X", str: "TEXT", bool: ""}


def add_to(app: typer.Typer) -> None:
    """Register the three."""
    _register(app, "serve", _serve, SERVE, {"url": Url, "model": Model, "api_key": Secret})
    _register(app, "latency", _latency, LATENCY, {}, engine=True)
    _register(app, "throughput", _throughput, THROUGHPUT, {}, engine=True)


def _serve(**given: Any) -> None:
    """Measure any OpenAI-compatible server: throughput, latencies, goodput, KV cache."""
    from ..bench.asked import pairs, plan_of
    from ..bench.online import run

    plan = plan_of(given)
    server = client(_url(given), given["api_key"])
    server.headers |= pairs(given["header"], "--header")
    if not run(server, plan):
        raise typer.Exit(FAILED)


def _latency(ctx: typer.Context, **given: Any) -> None:
    """Time one batch again and again, in this process; flags of `shoal serve` set the engine."""
    from ..bench.offline import engine_of, latency

    latency(engine_of(ctx.args, enable_prefix_caching=False), given)


def _throughput(ctx: typer.Context, **given: Any) -> None:
    """Time many prompts at once, in this process; flags of `shoal serve` set the engine."""
    from ..bench.offline import engine_of, throughput

    throughput(engine_of(ctx.args, seed=given["seed"]), given)


def _url(given: dict[str, Any]) -> str | None:
    host, port, url = given["host"], given["port"], given["url"]
    if host is None and port is None:
        return str(url) if url is not None else None
    if url is not None:
        raise ConfigError("--url and --host or --port both name the server; keep one", "url")
    return f"http://{host or '127.0.0.1'}:{port or 8000}"


def _register(
    app: typer.Typer,
    name: str,
    command: Callable[..., None],
    options: tuple[Option, ...],
    first: dict[str, Any],
    *,
    engine: bool = False,
) -> None:
    """Make a command of a function. `engine`: flags it does not know are the engine's."""

    class Line(typer.core.TyperCommand):
        """Reads a line as vLLM's benchmarks do: a flag may take several words."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Refuse an unknown flag with a hint, before anything is read."""
            words = unfolded(args, options)
            if not ctx.resilient_parsing:
                known = [flag for p in self.params for flag in (*p.opts, *p.secondary_opts)]
                refuse_unknown(words, [*known, "--help"], engine=engine)
            return super().parse_args(ctx, words)

    kind = inspect.Parameter.KEYWORD_ONLY
    parts = [inspect.Parameter("ctx", kind, annotation=typer.Context)] if engine else []
    parts += [inspect.Parameter(n, kind, default=None, annotation=a) for n, a in first.items()]
    parts += _parameters(options)
    command.__signature__ = inspect.Signature(parts)  # type: ignore[attr-defined]
    command.__annotations__ = {part.name: part.annotation for part in parts}
    settings = {"allow_extra_args": True, "ignore_unknown_options": True} if engine else {}
    app.command(name, cls=Line, context_settings=settings)(command)


def _parameters(options: Iterable[Option]) -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            option.name,
            kind,
            default=list(option.default) if option.several else option.default,
            annotation=Annotated[_type(option), _typer_option(option)],
        )
        for option in options
    ]


def _type(option: Option) -> Any:
    if option.several:
        return list[option.kind]  # type: ignore[name-defined]
    return option.kind if option.default is not None else option.kind | None


def _typer_option(option: Option) -> Any:
    flags = [flag for flag, same in spellings([option]).items() if same is option]
    if option.kind is bool and option.default:
        flags = [f"{flag}/--no-{flag[2:]}" for flag in flags]
    return typer.Option(
        *flags,
        help=option.help,
        metavar=None if option.kind is bool else _METAVARS[option.kind],
        rich_help_panel=option.panel,
        show_default=option.default not in (None, (), False),
    )
