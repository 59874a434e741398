"""What a key depends on besides its own row: the state of its owner, and the static keys that created it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from server import House, Unavailable

from .static import StaticKey

REMEMBERED: Final = 60.0
"""Seconds for which the state of a key or its owner is cached."""
SETTLING: Final = 10.0
"""Seconds. A change carries a time before its commit, and a look-up in between does not see it."""
STATIC: Final = "static:"
"""Prefix of a static key's id in `created_by_key` of a managed key."""


def watched(user_id: str | None, org_id: str | None) -> tuple[str, ...]:
    """Returns the owners of a key as the revocation feed names them."""
    names = (user_id and f"user:{user_id}", org_id and f"organization:{org_id}")
    return tuple(name for name in names if name)


def changed(house: House, owners: Iterable[str], read_at: float) -> bool:
    """Whether these owners or their keys have changed since `read_at` (Unix seconds). Raises Unavailable on a stale feed."""
    revoked, since = house.revoked, read_at - SETTLING
    for owner in owners or ("",):  # noqa: SIM110 - on every request; the feed's age is checked even without an owner
        if revoked("keys", owner, since):
            return True
    return False


class State(NamedTuple):
    """Whether the owner of a static key has ended, at the time of reading."""

    ended: bool
    read_at: float
    """Unix seconds by the database's clock."""
    forget_at: float
    """By the monotonic clock."""


class StaticKeys:
    """The keys of the settings, checked against the recorded state of their owners: a user, a membership, an organisation."""

    def __init__(self, house: House, keys: Iterable[StaticKey], clock: Callable[[], float] = time.monotonic) -> None:
        self._house, self._clock = house, clock
        self._keys = {key.id: key for key in keys}
        self._states: dict[str, State] = {}

    def remembered(self, key: StaticKey) -> bool | None:
        """Whether this key is valid, from memory; None if the state must be read first. False for an expired key."""
        if key.expires_at is not None and key.expires_at <= time.time():
            return False
        state = self._states.get(key.id)
        if state is None or self._clock() >= state.forget_at:
            return None
        try:
            if changed(self._house, watched(key.identity.user_id, key.identity.org_id), state.read_at):
                return None
        except Unavailable:  # the state read last applies: a static key works without the feed
            pass
        return not state.ended

    async def holds(self, key_id: str) -> bool:
        """Whether this key exists, has not expired, and its owner has not ended.

        During an outage of the database the state read last applies; Unavailable is raised if none was read.
        """
        key = self._keys.get(key_id)
        if key is None:
            return False
        known = self.remembered(key)
        if known is not None:
            return known
        try:
            [row] = await self._house.query("key_owner_ended", key.identity.user_id, key.identity.org_id)
        except Unavailable:
            if key_id not in self._states:
                raise
            return not self._states[key_id].ended
        self._states[key_id] = State(row["ended"], row["read_at"].timestamp(), self._clock() + REMEMBERED)
        return not row["ended"]
