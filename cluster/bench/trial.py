"""What a server takes: a short request is tried, and written more plainly where it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from ..client import Client, ClientError
from .arrivals import Level
from .stream import Record
from .talks import Conversation, Form, Turn
from .traffic import drive

BUSY = 429
OF_ANY_FORM = frozenset({401, 403, 404, 405})
"""Refusals that another way to write the request does not change."""


def tried(client: Client, form: Form, ids: tuple[int, ...]) -> Form:
    """The form as the server takes it: with text instead of token ids, or without `ignore_eos`.

    `ids` are sent as the prompt, or where there are none a word. Failures after an answer has begun
    are left to the load, which counts them, and so is a busy server. Raises ClientError.
    """
    for plainer in _ways(form, ids=bool(ids)):
        record = _sent(client, plainer, ids)
        if not record.status:
            raise ClientError(
                f"no answer began to a request of one token to {client.url}{form.path}: "
                f"{record.error}. Is there a proxy between (http_proxy, https_proxy, no_proxy)?"
            )
        if not 400 <= record.status < 500 or record.status == BUSY:
            return plainer
        if record.status in OF_ANY_FORM:
            break
    raise ClientError(
        f"a request of one token to {client.url}{form.path} failed: {record.error}. --endpoint "
        "chat or completions (--backend openai-chat or openai) names the route, --model the model"
    )


def refused(form: Form, taken: Form) -> str | None:
    """What the server did not take of a form, for a person; None: it took all."""
    parts = []
    if form.ids and not taken.ids:
        parts.append("token ids as a prompt (text is sent)")
    if form.ignore_eos and not taken.ignore_eos:
        parts.append("ignore_eos (answers may end before their length)")
    return f"the server refuses {' and '.join(parts)}" if parts else None


def _ways(form: Form, *, ids: bool) -> Iterator[Form]:
    """The form, and each that is plainer than the one before."""
    for as_ids in (True, False) if ids and form.ids else (form.ids,):
        for ignore_eos in (True, False) if form.ignore_eos else (False,):
            yield replace(form, ids=as_ids, ignore_eos=ignore_eos)


def _sent(client: Client, form: Form, ids: tuple[int, ...]) -> Record:
    turn = Turn(1, ids) if ids and form.ids else Turn(1, text="Hello")
    talk = form.talk(Conversation(turns=(turn,)))
    url, one = client.url + form.path, Level(concurrency=1)
    return asyncio.run(drive(url, one, [talk], headers=client.headers)).records[0]
