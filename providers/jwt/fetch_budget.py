"""Limits how often unknown key ids may cause a fetch of the key set."""

from __future__ import annotations

from collections.abc import Callable


class FetchBudget:
    """Allows `burst` fetches at once, and one more every `refill` seconds.

    A single cool-down for all unknown key ids would let one forged token delay a key that was published since.
    """

    def __init__(self, burst: int, refill: float, clock: Callable[[], float]) -> None:
        """`clock` returns seconds and must be monotonic."""
        self._refill, self._ahead, self._clock = refill, (burst - 1) * refill, clock
        # When the budget is full again: the generic cell rate algorithm needs no counter and no timer.
        self._full_at = self._paused_until = float("-inf")

    def take(self) -> bool:
        """Whether a fetch may begin now. If so, it is counted."""
        if self.wait() > 0:
            return False
        self._full_at = max(self._full_at, self._clock()) + self._refill
        return True

    def wait(self) -> float:
        """Returns in how many seconds `take` returns True; 0 if it would now."""
        return max(self._full_at - self._ahead - self._clock(), self.paused())

    def paused(self) -> float:
        """Returns how many seconds are left of a pause; 0 without one."""
        return max(self._paused_until - self._clock(), 0.0)

    def pause(self, seconds: float) -> None:
        """Allow no fetch for this many seconds, as the service has asked (`Retry-After`)."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
