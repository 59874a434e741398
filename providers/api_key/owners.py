"""What a key depends on beside its own row: the state of its owner, and the keys of the settings that it comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from server import House, Unavailable

from .static import StaticKey

REMEMBERED: Final = 60.0
"""Seconds for which what was read of a key or its owner is remembered."""
SETTLING: Final = 10.0
"""Seconds. A change is dated before it is committed, and was not visible to a look-up in between."""
STATIC: Final = "static:"
"""Precedes the id of a key of the settings where a managed key names it as its maker."""


def watched(user_id: str | None, org_id: str | None) -> tuple[str, ...]:
    """The owners of a key as the revocation feed names them."""
    names = (user_id and f"user:{user_id}", org_id and f"organization:{org_id}")
    return tuple(name for name in names if name)


def changed(house: House, owners: Iterable[str], read_at: float) -> bool:
    """Have these owners or their keys changed since `read_at` (Unix seconds)? Raises Unavailable on a stale feed."""
    revoked, since = house.revoked, read_at - SETTLING
    for owner in owners or ("",):  # noqa: SIM110 - on every request; without an owner the feed's age is asked all the same
        if revoked("keys", owner, since):
            return True
    return False


class State(NamedTuple):
    """Whether the owner of a static key is over, as it was read."""

    ended: bool
    read_at: float
    """Unix seconds by the database's clock."""
    forget_at: float
    """By the monotonic clock."""


class StaticKeys:
    """The keys of the settings, held against the recorded state of their owners: a user, a membership, an organisation."""

    def __init__(self, house: House, keys: Iterable[StaticKey], clock: Callable[[], float] = time.monotonic) -> None:
        self._house, self._clock = house, clock
        self._keys = {key.id: key for key in keys}
        self._states: dict[str, State] = {}

    def remembered(self, key: StaticKey) -> bool | None:
        """Does this key hold, from memory? None: that has to be read. False for an expired one."""
        if key.expires_at is not None and key.expires_at <= time.time():
            return False
        state = self._states.get(key.id)
        if state is None or self._clock() >= state.forget_at:
            return None
        try:
            if changed(self._house, watched(key.identity.user_id, key.identity.org_id), state.read_at):
                return None
        except Unavailable:  # what was read last counts; a key of the settings does not end with the feed
            pass
        return not state.ended

    async def holds(self, key_id: str) -> bool:
        """Is there such a key, not expired, whose owner is not over? Raises Unavailable where that cannot be read.

        A state that was read before counts while the database cannot be asked.
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
