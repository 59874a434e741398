"""How many live answers each caller, all unknown callers together, and the process have open."""

from __future__ import annotations

from collections import Counter

from ..http.errors import ServiceUnavailable, TooManyRequests
from .lease import Lease
from .settings import StreamBounds


class Places:
    """Counts the open live answers against their bounds."""

    def __init__(self, bounds: StreamBounds) -> None:
        self._bounds = bounds
        self._of: Counter[str] = Counter()
        self._unknown = 0

    def check(self, caller: str | None, *, known: bool, number: int) -> None:
        """Raise TooManyRequests or ServiceUnavailable if there is no place. `number`: open or being closed in this process.

        Unknown callers share half of the places, so that they cannot take all of them.
        """
        if caller is not None and self._of[caller] >= self._bounds.per_caller:
            raise TooManyRequests("streams", headers={"Retry-After": "1"})
        if number >= self._bounds.total or (not known and self._unknown >= max(1, self._bounds.total // 2)):
            raise ServiceUnavailable(for_log="streams-full")

    def take(self, lease: Lease) -> None:
        """Count a lease that is opened."""
        if lease.caller is not None:
            self._of[lease.caller] += 1
        self._unknown += lease.identity is None

    def leave(self, lease: Lease) -> None:
        """Stop counting a lease that has ended, so that its client can reconnect at once."""
        if lease.caller is not None:
            self._of[lease.caller] -= 1
            if self._of[lease.caller] <= 0:
                del self._of[lease.caller]
        self._unknown -= lease.identity is None
