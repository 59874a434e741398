"""A dictionary of bounded size, for everything that is remembered per caller, address or credential."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """An ordered dictionary that forgets its oldest entries once it holds `most`.

    The order is that of the last `put` (or `move_to_end`) of each key. Reading costs what it costs in a plain dictionary and
    does not change the order. `d[key] = value` alone does not enforce the bound: use `put`, or `make_room` before it.
    """

    def __init__(self, most: int) -> None:
        """`most` is the largest number of entries, at least 1."""
        super().__init__()
        self.most: Final = most

    def put(self, key: K, value: V) -> None:
        """Set a value as the newest entry, and drop the oldest one where there are now more than `most`."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self.most:
            self.popitem(last=False)

    def make_room(self, is_over: Callable[[V], bool]) -> None:
        """Before a new key: drop up to two of the oldest entries, those that are over and one more where it is full.

        Two for each new key, so that entries that are over disappear without ever walking through all of them.
        """
        for _ in range(min(2, len(self))):
            oldest = next(iter(self))
            if len(self) < self.most and not is_over(self[oldest]):
                return
            del self[oldest]
