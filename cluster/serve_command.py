"""`shoal serve`: its help from the settings, its line read by `flags.py`, its launchers."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
import typer.core

from ..engine.errors import ConfigError
from .banner import Progress
from .commands.completion import complete_model
from .config import ServeConfig
from .detach import detach, screen_of_launcher
from .flags import parameters
from .open_files import lift_limit
from .ports import check_port
from .print_config import printed
from .resolve import resolve
from .running import registered

DETACH = "--detach"
PRINT = "--print-config"
EXPLAIN = "--explain"
JSON = "--json"
DEBUG = "--debug"
_SWITCHES = (DETACH, PRINT, EXPLAIN, JSON)


class ServeCommand(typer.core.TyperCommand):
    """`shoal serve`: typer draws its help and completes its words, `flags.py` reads its line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave the arguments in `ctx.obj`, unless help or completions are asked for."""
        wanted = [arg for arg in args if arg in ("-h", "--help", "--help-all", "--help=all")]
        about = [arg.removeprefix("--help=") for arg in args if arg.startswith("--help=")]
        if "--help=all" in wanted:
            wanted = ["--help-all"]
        elif about:
            self._show_only(about[0])
            wanted = ["--help"]
        if wanted or ctx.resilient_parsing:
            return super().parse_args(ctx, wanted or args)
        switches = {arg.replace("_", "-") for arg in args} & {*_SWITCHES}
        ctx.meta.update(dict.fromkeys(_SWITCHES, False) | dict.fromkeys(switches, True))
        ctx.obj = [arg for arg in args if arg.replace("_", "-") not in (DEBUG, *_SWITCHES)]
        return super().parse_args(ctx, [])

    def _show_only(self, word: str) -> None:
        """Let help show the flags with this word in their name or group."""
        for parameter in self.params:
            group = getattr(parameter, "rich_help_panel", None) or ""
            names = " ".join([*parameter.opts, group]).lower()
            parameter.hidden = word.replace("_", "-").lower() not in names  # type: ignore[attr-defined]


def _help_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        for parameter in ctx.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(ctx.get_help())
        raise typer.Exit()


def _serve(ctx: typer.Context, **_: object) -> None:
    """Serve a model over the OpenAI API."""
    resolved = resolve(ctx.obj)
    config = resolved.config
    if ctx.meta[PRINT]:
        for remark in resolved.remarks:
            typer.echo(f"  {remark}", err=True)
        typer.echo(printed(resolved), nl=False)
        return
    if ctx.meta[EXPLAIN]:
        from .explained import explained

        typer.echo(explained(config, as_json=ctx.meta[JSON]), nl=False)
        return
    if ctx.meta[JSON]:
        raise ConfigError(f"{JSON} goes with {EXPLAIN}; leave it out", "json")
    if ctx.meta[DETACH]:
        raise typer.Exit(_detach(ctx.obj, config))
    screen = screen_of_launcher()
    with registered(config) as registration:
        progress = Progress(screen=screen, detached=screen is not None, on_ready=registration.ready)
        for remark in resolved.remarks:
            progress.note(remark)
        _run(config, progress)


def _detach(args: list[str], config: ServeConfig) -> int:
    check_port(config.host, config.port)
    return detach(args, config)


def _run(config: ServeConfig, progress: Progress) -> None:
    if line := lift_limit():
        progress.warn(line)
    if config.local:
        with progress.phase("start Python"):
            from .local import run_local
        run_local(config, progress)
    else:
        with progress.phase("start Python"):
            from .app import run
        run(config, progress)


def add_to(app: typer.Typer) -> None:
    """Register `serve`, with a flag for each setting."""
    kind = inspect.Parameter.KEYWORD_ONLY
    model = typer.Argument(
        help="Folder or hub id (default: the bundled model).",
        metavar="MODEL",
        autocompletion=complete_model,
    )
    file = typer.Option("--config", "-c", help="YAML file of the same keys.", metavar="FILE")
    every = typer.Option(
        "--help-all", help="Show every flag.", metavar="", callback=_help_all, is_eager=True
    )
    shown = typer.Option(
        PRINT,
        help="Print the configuration as YAML, with where each value comes from, and end.",
        metavar="",
    )
    explain = typer.Option(
        EXPLAIN,
        help="Print which implementation computes each op of the model here, and why, and end.",
        metavar="",
    )
    as_json = typer.Option(JSON, help=f"With {EXPLAIN}: print JSON.", metavar="")
    detached = typer.Option(DETACH, help="Serve in the background, once it is ready.", metavar="")
    debug = typer.Option(DEBUG, help="Show tracebacks.", metavar="", hidden=True)
    _serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("ctx", kind, annotation=typer.Context),
            inspect.Parameter("model", kind, default=None, annotation=Annotated[str | None, model]),
            inspect.Parameter("config", kind, default=None, annotation=Annotated[str | None, file]),
            inspect.Parameter("help_all", kind, default=False, annotation=Annotated[bool, every]),
            inspect.Parameter(
                "print_config", kind, default=False, annotation=Annotated[bool, shown]
            ),
            inspect.Parameter("explain", kind, default=False, annotation=Annotated[bool, explain]),
            inspect.Parameter("json", kind, default=False, annotation=Annotated[bool, as_json]),
            inspect.Parameter("detach", kind, default=False, annotation=Annotated[bool, detached]),
            inspect.Parameter("debug", kind, default=False, annotation=Annotated[bool, debug]),
            *parameters(),
        ]
    )
    parts = _serve.__signature__.parameters  # type: ignore[attr-defined]
    _serve.__annotations__ = {name: part.annotation for name, part in parts.items()}
    app.command("serve", cls=ServeCommand)(_serve)
