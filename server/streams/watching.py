"""Rechecks the leases whose provider alone knows whether the credential is still good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from ..http.errors import Unavailable
from .ends import DRAINING, TOO_LONG, End
from .lease import Lease
from .recheck import Recheck, is_watched, subjects_of

BLIND_SECONDS: Final = 30.0
"""A live answer whose credential cannot be looked up again ends at the first check after this time."""
NOTHING: Final[frozenset[tuple[str, str]]] = frozenset()


class Watching:
    """The open leases of API keys and of opaque tokens, whose end no event reports."""

    def __init__(
        self, recheck: Recheck, end: Callable[[Lease, End], None], expire_at: Callable[[Lease, float | None], None]
    ) -> None:
        """`end` ends a lease; `expire_at` sets when its credential ends."""
        self._recheck, self._end, self._expire_at = recheck, end, expire_at
        self._leases: set[Lease] = set()
        self._asking: dict[Lease, set[tuple[str, str]] | None] = {}
        """The leases whose provider is being asked; with a set: ask once more afterwards, because of these revocations."""
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._leases) + len(self._tasks)

    def add(self, lease: Lease) -> None:
        """Watch a lease if needed, and check it now: its credential may have ended since the request was admitted."""
        if is_watched(lease.identity):
            self._leases.add(lease)
            asyncio.get_running_loop().call_soon(self.look, lease)

    def discard(self, lease: Lease) -> None:
        """Stop watching a lease that has ended."""
        self._leases.discard(lease)

    def look_at_keys(self, changed: Iterable[tuple[str, str]]) -> None:
        """Check every lease of an API key. `changed` are the revocations that were read just now.

        They tell nothing of other credentials: for those an issuer would be asked, as often as anyone changes a key.
        """
        for lease in [one for one in self._leases if one.identity is not None and one.identity.token_type == "api_key"]:
            self.look(lease, changed)

    def look(self, lease: Lease, changed: Iterable[tuple[str, str]] = NOTHING) -> None:
        """Check whether the credential is still good, from memory if possible. One question about a lease at a time."""
        if lease not in self._leases:
            return
        if lease in self._asking:
            self._asking[lease] = (self._asking[lease] or set()) | set(changed)
            return
        if self._recheck.is_impossible(lease):
            if asyncio.get_running_loop().time() - lease.opened_at >= BLIND_SECONDS:
                self._end(lease, TOO_LONG)
            return
        try:
            if not self._recheck.is_needed(lease):
                return
        except Unavailable:
            self._end(lease, DRAINING)
            return
        self._asking[lease] = None
        task = asyncio.get_running_loop().create_task(self._ask(lease, frozenset(changed)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, lease: Lease, changed: frozenset[tuple[str, str]]) -> None:
        try:
            outcome = await self._recheck.outcome(lease, changed)
        finally:
            again = self._asking.pop(lease)
        if isinstance(outcome, End):
            self._end(lease, outcome)
        elif outcome is not None and lease.end is None and lease.identity is not None:
            if subjects_of(outcome) == subjects_of(lease.identity):
                lease.identity = outcome  # with the same rights: the one that the provider recalls from now on
            self._expire_at(lease, outcome.expires_at)
        if again is not None:
            self.look(lease, again)
