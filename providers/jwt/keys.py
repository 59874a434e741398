"""The keys of a verifier, and a fixed key."""

from __future__ import annotations

from typing import Protocol

from .jwk import Key


class Keys(Protocol):
    """The keys of a verifier. `get` and `generation` never wait; `find` may."""

    def get(self, kid: str | None) -> Key | None:
        """Returns the key if it is known and fresh."""

    async def find(self, kid: str | None) -> Key | None:
        """Returns the key, or None if there is no such key. Raises Unavailable if that cannot be determined."""

    def generation(self) -> int:
        """Changes whenever a key stops being trusted. What was verified under another number must be verified again."""

    def not_ready(self) -> str | None:
        """Returns why no token can be verified now, or None."""

    def figures(self) -> dict[str, float]:
        """Returns the age of the keys and the number of fetches, for the metrics."""

    async def open(self) -> None:
        """Start. An unreachable service is not an error."""

    async def close(self) -> None:
        """Stop."""


class StaticKeys:
    """One key that never changes. With `kid` None it serves tokens of any kid."""

    def __init__(self, key: Key, kid: str | None = None) -> None:
        self._key = key
        self._kid = kid

    def get(self, kid: str | None) -> Key | None:
        """Returns the key, or None if it is bound to another kid."""
        return self._key if self._kid is None or kid == self._kid else None

    async def find(self, kid: str | None) -> Key | None:
        """As `get`."""
        return self.get(kid)

    def generation(self) -> int:
        """Always 0."""
        return 0

    def not_ready(self) -> str | None:
        """Always ready."""
        return None

    def figures(self) -> dict[str, float]:
        """Always empty."""
        return {}

    async def open(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to stop."""
