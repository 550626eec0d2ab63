"""The `shoal` command: its parts put together, and its errors told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from ..engine.errors import ShoalError
from ..engine.supported import check_platform
from . import serve_command
from .commands import (
    bench,
    chat,
    complete,
    completion,
    doctor,
    drain,
    k8s,
    logs,
    ls,
    ps,
    pull,
    status,
    stop,
)
from .escapes import clean
from .exits import FAILED, INTERRUPTED, MEANING, exit_code

COMPLETE = "_SHOAL_COMPLETE"
"""Set by a shell that asks for words."""

app = typer.Typer(
    help="shoal: a distributed LLM serving cluster on Ray.",
    epilog="Exit codes: " + ", ".join(f"{code} {means}" for code, means in MEANING.items()) + ".",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        check_platform()
        if COMPLETE in os.environ:
            os.environ["COLUMNS"] = "9999"  # help wrapped to lines would be taken for more words
        app(prog_name="shoal")
    except ShoalError as error:
        if _debug():
            raise
        tell(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _forget_output()
        sys.exit(FAILED)


def tell(error: ShoalError) -> None:
    """Print an error for a person."""
    print(f"error: {clean(error.message)}", file=sys.stderr)


def _debug() -> bool:
    return bool(os.environ.get("SHOAL_DEBUG")) or "--debug" in sys.argv


def _forget_output() -> None:
    """Whoever read our output has left: let what is still buffered go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


serve_command.add_to(app)
_COMMANDS: tuple[Callable[..., None], ...] = (
    *(chat.chat, complete.complete, ps.ps, status.status, drain.drain, logs.logs, stop.stop),
    *(pull.pull, ls.ls, doctor.doctor),
)
for command in _COMMANDS:
    app.command()(command)
app.add_typer(bench.app, name="bench")
app.command()(k8s.k8s)
app.command()(completion.completion)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"shoal {__version__}")


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit()


@app.callback()
def _root(
    show: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass
