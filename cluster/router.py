"""Which replica a request goes to; decided in the gateway's process, without a call to anybody.

`FleetRouter` keeps a link to each replica of the membership and chooses among the links.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping

from ..engine.errors import EngineLost, UnknownModel
from ..engine.request import Request
from . import health
from .chooser import Chooser, check_room
from .link import Fit, Link, ModelCard, anywhere
from .membership import Member, Membership
from .remote import RemoteLink, connect
from .waker import Waker

RETRY_S = 0.1
MAX_RETRY_S = 2.0
GONE = "it was taken away"

log = logging.getLogger(__name__)


class FleetRouter:
    """The Router over links to remote replicas. Used on one event loop, but for `watch`.

    `wanted`: how many replicas there should be, by the served names of their model. While Serve is
    out of reach the last snapshot holds. `on_gone`, if set, is given every link that has ended.
    """

    def __init__(
        self, *, wanted: Mapping[tuple[str, ...], int], secret: bytes, gateway: str
    ) -> None:
        self._wanted = dict(wanted)
        self._secret = secret
        self._gateway = gateway
        self._members: dict[str, Member] = {}
        self._links: dict[str, RemoteLink] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._cards: dict[str, ModelCard] = {}
        self._wakers: dict[str, Waker] = {}
        self._ended: dict[str, str] = {}
        self.on_gone: Callable[[Link], None] | None = None
        self._chooser = Chooser()

    def watch(self, members: Membership) -> None:
        """Follow `members` from now on; called on the event loop."""
        loop = asyncio.get_running_loop()

        def follow(snapshot: tuple[Member, ...]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the gateway with it
                loop.call_soon_threadsafe(self._follow, snapshot)

        members.watch(follow)

    def expect(self, least: Mapping[str, int]) -> None:
        """From now on a model, by its first name, should have so many replicas at least."""
        for names in self._wanted:
            self._wanted[names] = least.get(names[0], self._wanted[names])

    def know(self, card: ModelCard) -> None:
        """Speak for a model that has no replica now; nothing where one has stated its own card."""
        self._cards.setdefault(card.names[0], card)

    def may_sleep(self, name: str, waker: Waker) -> None:
        """A model, by its first name, may have no replica: `waker` brings one back."""
        self._wakers[name] = waker

    async def awake(self, name: str) -> None:
        """See Router."""
        if name in self._wakers and not self._able(name):
            await self._wakers[name].wake(lambda: self._able(name))

    def choose(self, model: str, request: Request, fit: Fit = anywhere) -> Link:
        """See Router and `standing.py`. A model that sleeps is woken: what waits for one of its
        replicas may have begun on the last one that it had.
        """
        name = self._first_name(model)
        there = self._able(name)
        able = [link for link in there if fit(link)]
        if not there and name in self._wakers:
            self._wakers[name].ask()
        if not able:
            state = self.statuses()[name]
            raise EngineLost(f"no replica of {model} can take requests: it is {state}")
        return self._chooser.choose(able, request)

    def check_room(self, model: str) -> None:
        """See Router."""
        check_room(self._able(self._first_name(model)), model)

    def cards(self) -> list[ModelCard]:
        """See Router; a model stays known while its replicas are being replaced, and while those
        there have several vocabularies each speaks for its share of the requests.
        """
        return [self._card(names[0]) for names in self._wanted if names[0] in self._cards]

    def links(self) -> list[Link]:
        """See Router."""
        return list(self._links.values())

    def known(self) -> list[Link]:
        """See Router."""
        return list(self._links.values())

    def ended(self, replica: str) -> str | None:
        """How the last link to a replica without one ended: dead, stalled, or draining where it had
        done what it had; from any thread.
        """
        return self._ended.get(replica)

    def status(self) -> str:
        """See Router."""
        return health.of_all(self.statuses().values())

    def statuses(self) -> dict[str, str]:
        """See Router."""
        return {
            names[0]: health.of_model(len(self._able(names[0])), wanted, names[0] in self._cards)
            for names, wanted in self._wanted.items()
        }

    def close(self) -> None:
        """Hang up on every replica."""
        self._members.clear()
        for task in self._connecting.values():
            task.cancel()
        for link in tuple(self._links.values()):
            link.close()

    def _card(self, name: str) -> ModelCard:
        last = self._cards[name]
        able = [link.card for link in self._able(name)]
        same = all(card.vocabulary == last.vocabulary for card in able)
        return last if same else random.choice(able)

    def _first_name(self, model: str) -> str:
        for names in self._wanted:
            if model in names:
                return names[0]
        raise UnknownModel(f"The model `{model}` does not exist.", "model")

    def _able(self, name: str) -> list[RemoteLink]:
        """The replicas of a model, by its first name, that take requests."""
        links = self._links.values()
        return [link for link in links if link.card.names[0] == name and not link.leaving]

    def _follow(self, snapshot: tuple[Member, ...]) -> None:
        """Connect to who is new; let go of who is no longer there once nothing runs on it."""
        self._members = {member.replica: member for member in snapshot}
        self._ended = {r: state for r, state in self._ended.items() if r in self._members}
        for member in snapshot:
            self._reach(member)
        for replica in self._connecting.keys() - self._members.keys():
            self._connecting.pop(replica).cancel()
        for replica in self._links.keys() - self._members.keys():
            self._links[replica].leaving = True
            self._release(replica)

    def _release(self, replica: str) -> None:
        link = self._links.get(replica)
        if link is None or replica in self._members:
            return
        # The last one is kept until its successor is within reach: requests may wait for that.
        name = link.card.names[0]
        if link.num_live or any(self._members[r].model == name for r in self._connecting):
            asyncio.get_running_loop().call_later(RETRY_S, self._release, replica)
        else:
            link.close(GONE)

    def _reach(self, member: Member) -> None:
        if member.replica not in self._links and member.replica not in self._connecting:
            task = asyncio.get_running_loop().create_task(self._connect(member))
            self._connecting[member.replica] = task

    async def _connect(self, member: Member) -> None:
        """Try until it answers or Serve says that it is gone."""
        wait_s, said = RETRY_S, ""
        while True:
            try:
                link = await connect(
                    member.host,
                    member.port,
                    secret=self._secret,
                    gateway=self._gateway,
                    on_lost=self._lost,
                    prefixes=self._chooser.prefixes,
                )
                break
            except EngineLost as error:
                if error.message != said and wait_s >= MAX_RETRY_S:
                    said = error.message
                    log.warning("%s", said)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_RETRY_S)
        del self._connecting[member.replica]
        self._links[member.replica] = link
        self._ended.pop(member.replica, None)
        self._cards[link.card.names[0]] = link.card
        log.info("linked to replica %s of %s at %s:%s", *member)

    def _lost(self, link: RemoteLink) -> None:
        if self._links.get(link.replica) is link:
            del self._links[link.replica]
            self._chooser.forget(link.replica)
            self._ended[link.replica] = "draining" if link.leaving else link.state
            if self.on_gone is not None:
                self.on_gone(link)
            log.log(
                logging.INFO if link.lost == GONE else logging.WARNING,
                "replica %s of %s is lost: %s; %d streams go on elsewhere",
                link.replica,
                link.card.names[0],
                link.lost,
                link.num_lost,
            )
            if member := self._members.get(link.replica):
                self._reach(member)
