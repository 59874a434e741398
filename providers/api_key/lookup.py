"""Managed keys: looked up in Postgres by digest, remembered for a while, dropped at once when something changes them.

One indexed query per key and minute and worker. What the cache says is held against the revocation feed on every request;
while the feed is stale nobody can say what has been revoked, and every managed key is a 503.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server import CredentialRejected, House, Identity

from .key_format import Key
from .throttle import Throttle

REMEMBERED: Final = 60.0
"""Seconds for which a key that was found is remembered."""
UNKNOWN: Final = 5.0
"""Seconds for which a key that was not found is remembered as unknown."""
SETTLING: Final = 10.0
"""Seconds. A change is dated before it is committed, and was not visible to whoever read in between."""
MOST: Final = 10_000
STATIC: Final = "static:"
"""Stands before the id of a key from the settings where a managed key names it as its maker."""


@dataclass(frozen=True, slots=True)
class Found:
    """What Postgres said of a digest. `identity` is None where there is no such key, or it is over (`reason`)."""

    reason: str
    identity: Identity | None
    key_id: str | None
    maker: str | None
    expires_at: float
    """Unix seconds; infinity for never."""
    read_at: float
    """Unix seconds by the database's clock."""
    forget_at: float
    """By the monotonic clock."""


class ManagedKeys:
    """Finds managed keys; see the module. `statics` are the ids of the keys in the settings, with their ends."""

    def __init__(self, house: House, statics: Mapping[str, float | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._house, self._statics, self._clock = house, statics, clock
        self._known: OrderedDict[bytes, Found] = OrderedDict()
        self._unknown: OrderedDict[bytes, Found] = OrderedDict()
        self._worked: OrderedDict[bytes, None] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Found]] = {}
        self._throttle = Throttle()

    async def identity(self, key: Key, client: str) -> Identity:
        """Whose key this is. `client` is the address to charge for an unknown one. Raises CredentialRejected, Unavailable."""
        digest = key.digest
        found = self._remembered(digest)
        if found is None:
            found = await self._ask(digest, client)
            self._changed(found.key_id or "", found.read_at)  # a stale feed is an outage for a new key too
        if found.expires_at <= time.time():
            raise CredentialRejected("key-expired", f"key {found.key_id}")
        if found.identity is None or not self._maker_lives(found):
            raise CredentialRejected(found.reason, f"key {found.key_id or 'unknown'}")
        return found.identity

    def recall(self, digest: bytes) -> Identity | None:
        """Whose key this is, where that is remembered and still holds; None: ask `identity`, which says what is wrong.

        Raises CredentialRejected for a revoked one, Unavailable.
        """
        found = self._known.get(digest)
        if found is None or found.identity is None or self._clock() >= found.forget_at or found.expires_at <= time.time():
            return None
        if (found.key_id is not None and self._changed(found.key_id, found.read_at)) or not self._maker_lives(found):
            return None
        return found.identity

    def _remembered(self, digest: bytes) -> Found | None:
        now = self._clock()
        found = self._known.get(digest) or self._unknown.get(digest)
        if found is None or now >= found.forget_at:
            return None
        if found.key_id is not None and self._changed(found.key_id, found.read_at):
            del self._known[digest]
            return None
        return found

    def _changed(self, key_id: str, read_at: float) -> bool:
        """Has the key changed since? Raises CredentialRejected where it was revoked for good, Unavailable on a stale feed."""
        if self._house.revoked("key", key_id, math.inf):  # only a revocation without a moment reaches that far
            raise CredentialRejected("key-revoked", f"key {key_id}")
        return self._house.revoked("key", key_id, read_at - SETTLING)

    def _maker_lives(self, found: Found) -> bool:
        """A key made by a key of the settings ends with it; those made by managed ones are revoked in the database."""
        if found.maker is None or not found.maker.startswith(STATIC):
            return True
        ends = self._statics.get(found.maker.removeprefix(STATIC), 0.0)
        return ends is None or ends > time.time()

    async def _ask(self, digest: bytes, client: str) -> Found:
        """One query, however many requests wait for its answer; none of them can cancel it for the others."""
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._look(digest, client))
            self._asking[digest] = task
            task.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(task)

    def _asked(self, digest: bytes, task: asyncio.Task[Found]) -> None:
        self._asking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # seen, even where every waiting request has gone away

    async def _look(self, digest: bytes, client: str) -> Found:
        if digest in self._worked:
            rows = await self._house.query("key_by_hash", digest)
        else:
            async with self._throttle.turn(client):
                rows = await self._house.query("key_by_hash", digest)
            if rows:
                self._throttle.pay_back(client)
        if not rows:
            found = Found("credential-rejected", None, None, None, math.inf, 0.0, self._clock() + UNKNOWN)
            _put(self._unknown, digest, found)
            return found
        found = self._read(rows[0])
        _put(self._worked, digest, None)
        _put(self._known, digest, found)
        return found

    def _read(self, row: Mapping[str, Any]) -> Found:
        over = row["revoked_at"] is not None or row["ended"]
        read_at = row["read_at"].timestamp()
        life = REMEMBERED if row["until"] is None else min(REMEMBERED, row["until"].timestamp() - read_at)
        ends = math.inf if row["expires_at"] is None else row["expires_at"].timestamp()
        return Found(
            "key-revoked", None if over else _identity(row), row["id"], row["created_by_key"],
            math.inf if over else ends, read_at, self._clock() + life,
        )  # fmt: skip

    async def close(self) -> None:
        for task in list(self._asking.values()):
            task.cancel()


def _identity(row: Mapping[str, Any]) -> Identity:
    # A key is looked up anew rather than issued once. Whatever ends or changes it comes as a revocation of its own id; a
    # revocation of its user or organisation up to a moment is for their sessions (a lock, a new role) and does not end
    # keys. One without a moment (deletion) does, and that is what an infinite time of issue says to the gate.
    return Identity(
        provider="api_key", token_type="api_key", key_id=row["id"], issued_at=math.inf, user_id=row["user_id"],
        org_id=row["org_id"], org_role=row["org_role"], org_permissions=row["org_permissions"], scopes=row["scopes"],
    )  # fmt: skip


def _put(cache: OrderedDict[bytes, Any], digest: bytes, value: Any) -> None:
    cache[digest] = value
    cache.move_to_end(digest)
    if len(cache) > MOST:
        cache.popitem(last=False)
