"""What a key depends on besides its own row: the state of its owner, and the static keys that created it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from server import House, Identity, Unavailable

from .rights import within_membership
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
    """What the recorded state of its owner leaves of a static key, at the time of reading."""

    identity: Identity | None
    """The key's caller, with the rights of the recorded membership at most; None if the owner has ended."""
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

    def recall(self, key: StaticKey) -> Identity | None:
        """Returns the caller of a key that is valid, from memory; None: `identity` must be called."""
        state = None if key.has_expired else self._remembered(key)
        return None if state is None else state.identity

    async def identity(self, key_id: str) -> Identity | None:
        """Returns the caller of this key; None if there is no such key, it has expired, or its owner has ended.

        During an outage of the database the state read last applies; Unavailable is raised if none was read.
        """
        key = self._keys.get(key_id)
        if key is None or key.has_expired:
            return None
        return (self._remembered(key) or await self._read(key)).identity

    def _remembered(self, key: StaticKey) -> State | None:
        """The state that was read last; None if it must be read again."""
        state = self._states.get(key.id)
        if state is None or self._clock() >= state.forget_at:
            return None
        try:
            if changed(self._house, watched(key.identity.user_id, key.identity.org_id), state.read_at):
                return None
        except Unavailable:  # the state read last applies: a static key works without the feed
            pass
        return state

    async def _read(self, key: StaticKey) -> State:
        try:
            [row] = await self._house.query("key_owner_ended", key.identity.user_id, key.identity.org_id)
        except Unavailable:
            if key.id not in self._states:
                raise
            return self._states[key.id]
        identity = None
        if not row["ended"]:
            known = row.get("member")  # without a recorded membership the stored rights apply
            identity = within_membership(key.identity, row["role"], row["permissions"]) if known else key.identity
        state = self._states[key.id] = State(identity, row["read_at"].timestamp(), self._clock() + REMEMBERED)
        return state
