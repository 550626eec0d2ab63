"""`shoal bench`: measure a server, or the engine in this process."""

from __future__ import annotations

from typing import Annotated

import typer

from ...engine.errors import ConfigError
from ..exits import FAILED
from ..running import running
from . import bench_measure
from .options import Secret, client

app = typer.Typer(help="Measure a server, or the engine in this process.", no_args_is_help=True)
bench_measure.add_to(app)


@app.command("chaos", context_settings={"ignore_unknown_options": True})
def bench_chaos(
    serve: Annotated[
        list[str] | None,
        typer.Argument(help="Flags of a `shoal serve` to start, if no --url names one."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A server that runs on this machine.", metavar="URL")
    ] = None,
    streams: Annotated[int, typer.Option(help="Streams in all.", min=1, metavar="N")] = 1000,
    distinct: Annotated[
        int, typer.Option(help="Different ones among them.", min=1, metavar="N")
    ] = 120,
    concurrency: Annotated[int, typer.Option(help="Streams at once.", min=1, metavar="N")] = 64,
    output_len: Annotated[int, typer.Option(help="Tokens a choice.", min=1, metavar="N")] = 64,
    faults: Annotated[
        str,
        typer.Option(help="Of kill, worker, gateway, stop, term, in turn.", metavar="KIND,.."),
    ] = "kill,stop",
    every: Annotated[float, typer.Option(help="Seconds between faults.", metavar="S")] = 5.0,
    stop_for: Annotated[float, typer.Option(help="Seconds that `stop` lasts.", metavar="S")] = 6.0,
    json_file: Annotated[
        str | None, typer.Option("--json", help="File for all figures.", metavar="FILE")
    ] = None,
    api_key: Secret = None,
) -> None:
    """Kill replicas under streams, and compare each stream with the undisturbed run.

    Without --url a server of three replicas of the bundled model, or as the flags after `--` say,
    is started for it.
    """
    from .. import chaos, chaos_faults
    from ..bench.save import writable

    plan = chaos.Plan(
        streams=streams,
        distinct=distinct,
        concurrency=concurrency,
        output_len=output_len,
        faults=chaos_faults.named(faults),
        every_s=every,
        timeout_s=120.0,
    )
    file = writable(json_file, "--json")
    if url is not None:
        server = client(url, api_key)
        found = [entry.pid for entry in running() if entry.url == server.url]
        if not found:
            raise ConfigError(f"no serve of this user on this machine has {server.url}", "url")
        processes = chaos_faults.Processes(found[0], plan.faults, stop_for)
        same = chaos.run(server, plan, processes, file)
    else:
        with chaos_faults.served(serve or ["--replicas", "3"]) as (address, pid):
            processes = chaos_faults.Processes(pid, plan.faults, stop_for)
            same = chaos.run(client(address, api_key), plan, processes, file)
    if not same:
        raise typer.Exit(FAILED)
