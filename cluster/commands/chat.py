"""`shoal chat`: talk to a model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..ctrl_c import heard
from .options import Heat, MaxTokens, Model, Secret, Url, client, sampling

System = Annotated[
    str | None,
    typer.Option("--system", "--system-prompt", help="What the model is told first."),
]
Quick = Annotated[
    str | None,
    typer.Option("--quick", "-q", help="Say this alone, print the answer.", metavar="TEXT"),
]
Plain = Annotated[bool, typer.Option("--plain", help="Show Markdown as it is written.")]


def chat(
    url: Url = None,
    model: Model = None,
    system: System = None,
    quick: Quick = None,
    max_tokens: MaxTokens = None,
    temperature: Heat = None,
    plain: Plain = False,
    api_key: Secret = None,
) -> None:
    """Talk to a model. Ctrl-C interrupts an answer, Ctrl-D leaves, /help lists the commands."""
    from ..chat.conversation import Conversation, converse
    from ..chat.terminal import talk

    server = client(url, api_key)
    conversation = Conversation(
        client=server,
        model=model or server.model(),
        options=sampling(max_tokens, temperature),
        system=system,
    )
    with heard():
        if quick is None and sys.stdin.isatty():
            talk(conversation, plain=plain)
        else:
            converse(conversation, quick=quick, plain=plain)
