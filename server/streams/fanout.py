"""Passes each change to the streams of the row's tenant. The number of changes that wait for a stream is bounded."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from ..telemetry.log import LOG, log_failure

PENDING: Final = 256
"""The most ids that wait for one stream; beyond it the client must load everything again."""
NOTIFIED_AT_ONCE: Final = 64
"""How many streams are notified before the event loop does anything else: the rows of the first are read meanwhile."""
PENDING_IN_ALL: Final = 100_000
"""The most ids that wait for all streams of a process."""
_EVENTS: Final = {"i": "created", "u": "updated", "d": "deleted"}

RECREATED: Final = "recreated"
"""Deleted and then created: for the client `created` if it sees the row, and `deleted` if not."""

Key = tuple[str, str, str]
"""(table, `organization` or `user`, its id)."""


class Subscription:
    """The changes that wait for one stream: ids with their events, or `resync` if there are too many.

    `notify` is called soon after there is something to take: once for all messages that arrived together, such as the two of
    one row that has a user and an organisation.
    """

    __slots__ = ("_fanout", "due", "keys", "notify", "pending", "resync")

    def __init__(self, fanout: Fanout, keys: tuple[Key, ...]) -> None:
        self._fanout, self.keys = fanout, keys
        self.pending: dict[str, str] = {}
        self.due = self.resync = False
        self.notify: Callable[[], None] | None = None

    def add(self, ids: Iterable[str], event: str) -> None:
        """Note that these rows were `created`, `updated` or `deleted`. Waiting changes of one row are merged."""
        if self.resync:  # the client will load everything after this
            return
        pending, fanout = self.pending, self._fanout
        before = len(pending)
        for id in ids:
            pending[id] = _merged(pending[id], event) if id in pending else event
        fanout.held += len(pending) - before
        if len(pending) > PENDING or fanout.held > PENDING_IN_ALL:
            self.require_resync()
        elif not self.due:
            fanout.schedule(self)

    def require_resync(self) -> None:
        """Drop what waits: the client must load everything again."""
        self._fanout.held -= len(self.pending)
        self.pending.clear()
        self.resync = True
        self._fanout.schedule(self)

    def take(self, most: int) -> dict[str, str]:
        """Remove and return at most `most` ids with their events, oldest first."""
        if len(self.pending) <= most:
            taken, self.pending = self.pending, {}
        else:
            taken = {id: self.pending.pop(id) for id in list(self.pending)[:most]}
        self._fanout.held -= len(taken)
        return taken

    def put_back(self, taken: dict[str, str]) -> None:
        """Put back ids that were taken and could not be read."""
        if self.resync:
            return
        newer, self.pending = self.pending, dict(taken)
        for id, event in newer.items():
            self.pending[id] = _merged(self.pending[id], event) if id in self.pending else event
        self._fanout.held += len(self.pending) - len(newer)

    def close(self) -> None:
        """Unsubscribe."""
        self.notify = None
        self._fanout.remove(self)


class Fanout:
    """The subscriptions of a process, by table and tenant."""

    def __init__(self) -> None:
        self._by_key: dict[Key, dict[Subscription, None]] = {}
        self._all: dict[Subscription, None] = {}
        self._due: deque[Subscription] = deque()
        self._scheduled = False
        self.held = 0
        """How many ids wait for all streams together."""
        self.missed: Callable[[str], None] | None = None
        """Called with the table of each message that concerns no stream."""

    def __len__(self) -> int:
        return len(self._all)

    def subscribe(self, keys: tuple[Key, ...]) -> Subscription:
        """Subscribe to the changes of these tenants' rows from now on."""
        subscription = Subscription(self, keys)
        self._all[subscription] = None
        for key in keys:
            self._by_key.setdefault(key, {})[subscription] = None
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """End a subscription; may be called more than once."""
        if subscription not in self._all:
            return
        del self._all[subscription]
        self.held -= len(subscription.pending)
        subscription.pending.clear()
        for key in subscription.keys:
            others = self._by_key[key]
            others.pop(subscription, None)
            if not others:
                del self._by_key[key]

    def schedule(self, subscription: Subscription) -> None:
        """Call `notify` of this subscription soon."""
        if subscription.notify is not None and not subscription.due:
            subscription.due = True
            self._due.append(subscription)
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._notify_some)

    def _notify_some(self) -> None:
        """Call `notify` of those that have waited longest, and of the others later: what these begin runs meanwhile."""
        due = self._due
        for _ in range(min(len(due), NOTIFIED_AT_ONCE)):
            subscription = due.popleft()
            subscription.due = False
            try:
                if subscription.notify is not None:
                    subscription.notify()
            except Exception as error:  # a failure of one stream is not the others'
                log_failure("a change could not be passed on", error)
        self._scheduled = bool(due)
        if due:
            asyncio.get_running_loop().call_soon(self._notify_some)

    def receive(self, payload: str) -> None:
        """Pass on a message of gatepost_changed (schema.sql). After an unknown one, every stream must load everything again."""
        try:
            match json.loads(payload):
                case [str(table), str(kind), str(tenant), str(what), [*ids], *_] if what in _EVENTS and all(
                    type(id) is str for id in ids
                ):
                    subscriptions = self._by_key.get((table, kind, tenant))
                    if subscriptions is None:
                        if self.missed is not None:
                            self.missed(table)
                        return
                    for subscription in list(subscriptions):
                        subscription.add(ids, _EVENTS[what])
                case [str(table), str(kind), str(tenant)]:
                    for subscription in list(self._by_key.get((table, kind, tenant), ())):
                        subscription.require_resync()
                case [str(table)]:
                    self.resync_tables({table})
                case _:
                    raise ValueError
        except (ValueError, RecursionError):
            LOG.warning("a change was announced in a form that is not known", extra={"fields": {"bytes": len(payload)}})
            self.resync_all()

    def resync_tables(self, tables: set[str]) -> None:
        """Have every client of these tables load everything again."""
        for subscription in [one for one in self._all if any(key[0] in tables for key in one.keys) or not one.keys]:
            subscription.require_resync()

    def resync_all(self) -> None:
        """Have every client load everything again: any change may have been missed."""
        for subscription in list(self._all):
            subscription.require_resync()


def _merged(before: str, event: str) -> str:
    """Returns the event of two in a row: created and then updated is created, and there again after `deleted` is RECREATED.

    That a row was deleted is not forgotten: if the caller cannot see the row that is there again, they must hear of it.
    """
    if event == "deleted":
        return event
    if before in ("deleted", RECREATED):
        return RECREATED if event == "created" else before
    return "created" if before == "created" and event == "updated" else event
