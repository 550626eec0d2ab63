"""`shoal bench`: measure a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..exits import FAILED
from .options import Model, Secret, Url, client

app = typer.Typer(help="Measure a running server.", no_args_is_help=True)

Streams = Annotated[
    str | None,
    typer.Option(help="Requests at once; levels as 1,8,32 (default: 8).", metavar="N,.."),
]
Rate = Annotated[
    float | None, typer.Option(help="Requests started a second, at random moments.", metavar="X")
]


@app.command("serve")
def bench_serve(
    url: Url = None,
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
    from ..bench import Plan, levels, run

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
    server = client(url, api_key)
    vocabulary = vocab_size or tokenizer
    if not run(server, shape, plan, model=model, vocabulary=vocabulary, json_file=json_file):
        raise typer.Exit(FAILED)
