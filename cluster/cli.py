"""The `shoal` command.

Exit codes: 0 done, 1 an error while running, 2 a wrong flag or configuration, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..engine.errors import ConfigError, ShoalError
from . import serve_command
from .client import Client

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    help="shoal: a distributed LLM serving cluster on Ray.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
)
bench = typer.Typer(help="Measure a running server.", no_args_is_help=True)
serve_command.add_to(app)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except ShoalError as error:
        if _debug():
            raise
        tell(error)
        sys.exit(MISUSED if isinstance(error, ConfigError) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def tell(error: ShoalError) -> None:
    """Print an error for a person."""
    print(f"error: {error.message}", file=sys.stderr)


def _debug() -> bool:
    return bool(os.environ.get("SHOAL_DEBUG")) or "--debug" in sys.argv


Url = Annotated[
    str, typer.Option("--url", "--base-url", help="Address of the server.", metavar="URL")
]
Model = Annotated[str | None, typer.Option(help="Served name (default: the server's first).")]
Secret = Annotated[str | None, typer.Option(help="Key of the server (default: SHOAL_API_KEY).")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer.", metavar="N")]
Heat = Annotated[float | None, typer.Option(help="0 always takes the likeliest.", metavar="X")]
HERE = "http://127.0.0.1:8000"


def _client(url: str, api_key: str | None) -> Client:
    return Client(url, api_key or os.environ.get("SHOAL_API_KEY", "").split(",")[0])


def _sampling(max_tokens: int | None, temperature: float | None) -> dict[str, object]:
    options = {"max_tokens": max_tokens, "temperature": temperature}
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def chat(
    url: Url = HERE,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Heat = None,
    api_key: Secret = None,
) -> None:
    """Talk to a model. Ctrl-C interrupts an answer, Ctrl-D leaves."""
    from .chat import chat as converse

    client = _client(url, api_key)
    converse(client, model or client.model(), system, _sampling(max_tokens, temperature))


@app.command()
def complete(
    prompt: Annotated[str, typer.Argument(help="Text to go on from; - reads it from stdin.")],
    url: Url = HERE,
    model: Model = None,
    max_tokens: MaxTokens = None,
    temperature: Heat = None,
    api_key: Secret = None,
) -> None:
    """Print how a model goes on from a text."""
    from .chat import complete as go_on

    client = _client(url, api_key)
    text = sys.stdin.read() if prompt == "-" else prompt
    go_on(client, model or client.model(), text, _sampling(max_tokens, temperature))


Streams = Annotated[
    str | None,
    typer.Option(help="Requests at once; levels as 1,8,32 (default: 8).", metavar="N,.."),
]
Rate = Annotated[
    float | None, typer.Option(help="Requests started a second, at random moments.", metavar="X")
]


@bench.command("serve")
def bench_serve(
    url: Url = HERE,
    model: Model = None,
    endpoint: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    max_concurrency: Streams = None,
    request_rate: Rate = None,
    num_prompts: Annotated[
        int | None, typer.Option(help="Requests a level (default: 4 a stream).", min=1, metavar="N")
    ] = None,
    num_warmups: Annotated[
        int | None,
        typer.Option(help="Requests before each level that do not count.", min=0, metavar="N"),
    ] = None,
    input_len: Annotated[int, typer.Option(help="Prompt tokens.", metavar="N")] = 128,
    output_len: Annotated[int, typer.Option(help="Output tokens.", metavar="N")] = 64,
    shared_prefix_len: Annotated[
        int, typer.Option(help="Prompt tokens that all prompts share.", metavar="N")
    ] = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Ask for all output tokens.")] = True,
    seed: Annotated[int, typer.Option(help="Draws the prompts.", metavar="N")] = 0,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder whose config.json has the vocabulary's size.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="The size itself.", min=2, metavar="N")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for all figures.", metavar="FILE")
    ] = None,
    api_key: Secret = None,
) -> None:
    """Measure any OpenAI-compatible server with prompts of random tokens."""
    from .bench import Plan, levels, run

    plan = Plan(
        levels=levels(max_concurrency, request_rate),
        num_prompts=num_prompts,
        num_warmups=num_warmups,
    )
    shape = {
        "endpoint": endpoint,
        "input_len": input_len,
        "output_len": output_len,
        "shared_prefix_len": shared_prefix_len,
        "ignore_eos": ignore_eos,
        "seed": seed,
    }
    client = _client(url, api_key)
    vocabulary = vocab_size or tokenizer
    if not run(client, shape, plan, model=model, vocabulary=vocabulary, json_file=json_file):
        raise typer.Exit(FAILED)


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
