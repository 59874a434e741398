"""How many live answers one caller, all callers that are not known, and one process have open."""

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
        """Raise the refusal where there is no place. `number` are open, or are being closed, in this process.

        Callers that are not known share half of the places, so that they cannot take all of them.
        """
        if caller is not None and self._of[caller] >= self._bounds.per_caller:
            raise TooManyRequests("streams", headers={"Retry-After": "1"})
        if number >= self._bounds.total or (not known and self._unknown >= max(1, self._bounds.total // 2)):
            raise ServiceUnavailable

    def take(self, lease: Lease) -> None:
        """Count a lease that is opened."""
        if lease.caller is not None:
            self._of[lease.caller] += 1
        self._unknown += lease.identity is None

    def leave(self, lease: Lease) -> None:
        """Stop counting a lease that has ended: its client may connect again at once."""
        if lease.caller is not None:
            self._of[lease.caller] -= 1
            if self._of[lease.caller] <= 0:
                del self._of[lease.caller]
        self._unknown -= lease.identity is None
