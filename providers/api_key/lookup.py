"""Managed keys: looked up in Postgres by digest, remembered for a while, dropped at once when something changes them.

One indexed query per key and minute and worker. What the cache says is held against the revocation feed on every request: a
change to a key of an owner means that the owner's keys, and all keys that depend on them, are looked up again, and the
look-up judges. While the feed is stale it is not known what has changed, and every managed key is a 503.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server import BoundedDict, CredentialRejected, House, Identity, SingleFlight

from .key_format import Key
from .owners import REMEMBERED, STATIC, StaticKeys, changed
from .throttle import Throttle

UNKNOWN: Final = 5.0
"""Seconds for which a key that was not found is remembered as unknown."""
MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """What Postgres said of a digest. `identity` is None where there is no such key, or it is over (`reason`)."""

    reason: str
    identity: Identity | None
    key_id: str | None
    statics: tuple[str, ...]
    """The keys of the settings that it depends on, by their ids."""
    watched: tuple[str, ...]
    """Whose keys' changes mean that it must be looked up again."""
    expires_at: float
    """Unix seconds; infinity for never."""
    read_at: float
    """Unix seconds by the database's clock."""
    forget_at: float
    """By the monotonic clock."""


class ManagedKeys:
    """Finds managed keys; see the module. `statics` are the keys of the settings."""

    def __init__(self, house: House, statics: StaticKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._house, self._statics, self._clock = house, statics, clock
        self._known: BoundedDict[bytes, Found] = BoundedDict(MOST)
        self._unknown: BoundedDict[bytes, Found] = BoundedDict(MOST)
        self._worked: BoundedDict[bytes, None] = BoundedDict(MOST)
        self._flight: SingleFlight[bytes, Found] = SingleFlight("key look-up")
        self._throttle = Throttle()

    async def identity(self, key: Key, client: str) -> Identity:
        """Whose key this is. `client` is the address to charge for an unknown one. Raises CredentialRejected, Unavailable."""
        digest = key.digest
        found = self._remembered(digest)
        if found is None:
            found = await self._flight.run(digest, lambda: self._look(digest, client))
            self._changed(found)  # a stale feed is an outage for a new key too
        if found.expires_at <= time.time():
            raise CredentialRejected("key-expired", f"key {found.key_id}")
        if found.identity is None or not await self._makers_live(found):
            raise CredentialRejected(found.reason, f"key {found.key_id or 'unknown'}")
        return found.identity

    def recall(self, digest: bytes) -> Identity | None:
        """Whose key this is, where that is remembered and still holds; None: ask `identity`, which says what is wrong.

        Raises CredentialRejected for a revoked one, Unavailable.
        """
        found = self._known.get(digest)
        if found is None or found.identity is None or self._clock() >= found.forget_at or found.expires_at <= time.time():
            return None
        return None if found.statics or self._changed(found) else found.identity

    def _remembered(self, digest: bytes) -> Found | None:
        now = self._clock()
        found = self._known.get(digest) or self._unknown.get(digest)
        if found is None or now >= found.forget_at:
            return None
        if found.identity is not None and self._changed(found):  # what is over stays so
            del self._known[digest]
            return None
        return found

    def _changed(self, found: Found) -> bool:
        """Has something changed since that this key depends on? Raises Unavailable on a stale feed."""
        return changed(self._house, found.watched, found.read_at)

    async def _makers_live(self, found: Found) -> bool:
        """Do the keys of the settings hold that it depends on? The database has judged the others. Raises Unavailable."""
        for key_id in found.statics:
            if not await self._statics.holds(key_id):
                return False
        return True

    async def _look(self, digest: bytes, client: str) -> Found:
        if digest in self._worked:
            rows = await self._house.query("key_by_hash", digest)
        else:
            async with self._throttle.turn(client):
                rows = await self._house.query("key_by_hash", digest)
            if rows:
                self._throttle.pay_back(client)
        if not rows:
            found = Found("credential-rejected", None, None, (), (), math.inf, 0.0, self._clock() + UNKNOWN)
            self._unknown.put(digest, found)
            return found
        found = self._read(rows[0])
        self._worked.put(digest, None)
        self._known.put(digest, found)
        return found

    def _read(self, row: Mapping[str, Any]) -> Found:
        over = row["revoked_at"] is not None or row["ended"]
        read_at = row["read_at"].timestamp()
        life = REMEMBERED if row["until"] is None else min(REMEMBERED, row["until"].timestamp() - read_at)
        ends = math.inf if row["expires_at"] is None else row["expires_at"].timestamp()
        statics = tuple(key.removeprefix(STATIC) for key in row["depends_on"])
        return Found(
            "key-revoked", None if over else _identity(row), row["id"],
            statics, tuple(row["watched"]), math.inf if over else ends, read_at, self._clock() + life,
        )  # fmt: skip

    async def close(self) -> None:
        await self._flight.close()


def _identity(row: Mapping[str, Any]) -> Identity:
    # A key is looked up anew rather than issued once. What ends or changes it comes as a revocation of its owner's keys; a
    # revocation of its user or organisation up to a moment is for their sessions (a lock, a new role) and does not end
    # keys. One without a moment (deletion) does, and that is what an infinite time of issue says to the gate.
    return Identity(
        provider="api_key", token_type="api_key", key_id=row["id"], issued_at=math.inf, user_id=row["user_id"],
        org_id=row["org_id"], org_role=row["org_role"], org_permissions=row["org_permissions"], scopes=row["scopes"],
    )  # fmt: skip
