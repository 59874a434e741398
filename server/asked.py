"""A provider as the gate asks it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from .hookspecs import Provider


class Asked:
    """One provider, with what it says of itself looked up once.

    recall   its `recall`, or None
    known    the label under which callers that it knew are counted
    """

    __slots__ = ("_reads", "authenticate", "known", "name", "recall")

    def __init__(self, name: str, provider: Provider) -> None:
        self.name: Final = name
        self.authenticate: Final = provider.authenticate
        self._reads: tuple[str, ...] | None = _names(getattr(provider, "reads", None))
        self.recall: Final = getattr(provider, "recall", None)
        self.known: Final = (name, "known")

    def may_know(self, headers: Container[str]) -> bool:
        """Is one of the headers there that the provider reads? True where it does not say which it reads."""
        if self._reads is None:
            return True
        for name in self._reads:  # noqa: SIM110 - a generator for `any` costs as much as all the rest
            if name in headers:
                return True
        return False


def _names(said: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if said is None or isinstance(said, str) else tuple(said)
