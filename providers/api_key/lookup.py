"""Finds managed keys in Postgres by digest, and caches them until something changes them.

A key costs one indexed query per minute and worker. Each request checks a cached key against the revocation feed: after a
change to a key, all keys of its owner, and all keys that depend on them, are looked up again before they are accepted. While
the feed is stale it is unknown what has changed, and every request with a managed key is a 503.
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
from .rights import within
from .throttle import Throttle

UNKNOWN: Final = 5.0
"""Seconds for which a key that was not found is remembered as unknown."""
MOST: Final = 10_000
DIGEST: Final = "api_key.digest"
"""Where an Identity of a managed key keeps the SHA-256 of its secret."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a look-up. `identity` is None if there is no such key, or it was revoked or its owner ended (`reason`)."""

    reason: str
    identity: Identity | None
    key_id: str | None
    statics: tuple[str, ...]
    """The ids of the static keys that it depends on."""
    watched: tuple[str, ...]
    """The owners after whose changes it must be looked up again, as the revocation feed names them."""
    expires_at: float
    """Unix seconds; infinity for never."""
    read_at: float
    """Unix seconds by the database's clock."""
    forget_at: float
    """By the monotonic clock."""


class ManagedKeys:
    """The cache of managed keys. `statics` are the keys of the settings."""

    def __init__(self, house: House, statics: StaticKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._house, self._statics, self._clock = house, statics, clock
        self._known: BoundedDict[bytes, Found] = BoundedDict(MOST)
        self._unknown: BoundedDict[bytes, Found] = BoundedDict(MOST)
        self._worked: BoundedDict[bytes, None] = BoundedDict(MOST)
        self._flight: SingleFlight[bytes, Found] = SingleFlight("key look-up")
        self._throttle = Throttle()

    async def identity(self, key: Key, client: str) -> Identity:
        """Returns the key's caller. Charges the address `client` for an unknown key. Raises CredentialRejected, Unavailable."""
        digest = key.digest
        found = self._remembered(digest)
        if found is None:
            found = await self._flight.run(digest, lambda: self._look(digest, client))
            self._changed(found)  # a stale feed is an outage for a new key too
        if found.expires_at <= time.time():
            raise CredentialRejected("key-expired", f"key {found.key_id}")
        caller = await self._within_makers(found)
        if caller is None:
            raise CredentialRejected(found.reason, f"key {found.key_id or 'unknown'}")
        return caller

    async def recheck(self, identity: Identity) -> Identity:
        """Returns the caller of a live answer as the key is now. Raises CredentialRejected, Unavailable.

        Without the digest it is not known which secret of the key was used: a key that has changed is then rejected.
        """
        digest = identity.derived.get(DIGEST)
        found = None if digest is None else self._remembered(digest)
        if found is None and digest is not None:
            self._worked.put(digest, None)
            found = await self._flight.run(digest, lambda: self._look(digest, ""))
            self._changed(found)  # a stale feed is an outage
        caller = None if found is None else await self._within_makers(found)
        if found is None or caller is None:
            raise CredentialRejected("key-revoked", f"key {identity.key_id}")
        if found.expires_at <= time.time():
            raise CredentialRejected("key-expired", f"key {identity.key_id}")
        return caller

    def recall(self, digest: bytes) -> Identity | None:
        """Returns the caller of a cached key that is still valid; None: `identity` must be called, which states what is wrong.

        Raises Unavailable on a stale feed.
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
        if found.identity is not None and self._changed(found):  # a key that has ended never becomes valid again
            del self._known[digest]
            return None
        return found

    def _changed(self, found: Found) -> bool:
        """Whether anything that this key depends on has changed since it was read. Raises Unavailable on a stale feed."""
        return changed(self._house, found.watched, found.read_at)

    async def _within_makers(self, found: Found) -> Identity | None:
        """Returns the caller, with no more rights than the static keys that the key depends on; None if one is invalid.

        The database has checked the managed ones. Raises Unavailable.
        """
        identity = found.identity
        for key_id in found.statics:
            maker = await self._statics.identity(key_id)
            if identity is None or maker is None:
                return None
            identity = within(identity, maker, maker.scopes or ())
        return identity

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
        found = self._read(rows[0], digest)
        self._worked.put(digest, None)
        self._known.put(digest, found)
        return found

    def _read(self, row: Mapping[str, Any], digest: bytes) -> Found:
        over = row["revoked_at"] is not None or row["ended"]
        read_at = row["read_at"].timestamp()
        life = REMEMBERED if row["until"] is None else min(REMEMBERED, row["until"].timestamp() - read_at)
        ends = math.inf if row["expires_at"] is None else row["expires_at"].timestamp()
        last = min(ends, math.inf if row["until"] is None else row["until"].timestamp())
        statics = tuple(key.removeprefix(STATIC) for key in row["depends_on"])
        return Found(
            "key-revoked", None if over else _identity(row, last, digest), row["id"],
            statics, tuple(row["watched"]), math.inf if over else ends, read_at, self._clock() + life,
        )  # fmt: skip

    async def close(self) -> None:
        await self._flight.close()


def _identity(row: Mapping[str, Any], last: float, digest: bytes) -> Identity:
    """The key's caller. `last` (Unix seconds) is when the secret with this digest ends."""
    # Whatever ends or changes a key is reported as a revocation of its owner's keys, and the key is looked up again. A
    # revocation of its user or organisation up to a moment concerns their sessions (a lock, a new role) and does not end keys.
    # One without a moment (a deletion) does. An infinite time of issue tells the gate so.
    identity = Identity(
        provider="api_key", token_type="api_key", key_id=row["id"], issued_at=math.inf, user_id=row["user_id"],
        org_id=row["org_id"], org_role=row["org_role"], org_permissions=row["org_permissions"], scopes=row["scopes"],
        expires_at=last if last < math.inf else None,
    )  # fmt: skip
    identity.derived[DIGEST] = digest
    return identity
