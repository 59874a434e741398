"""Clerk's `fea` and `pla` claims: which features and plans the caller's user and organisation have.

A claim is a comma-separated list of `scope:slug`; the scope is `o` (organisation), `u` (user), or both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_ORG_WORDS = frozenset({"o", "org", "organization"})
_USER_WORDS = frozenset({"u", "user"})


@dataclass(frozen=True, slots=True)
class Subscription:
    """The slugs that hold for the organisation and for the user."""

    org: frozenset[str] = frozenset()
    user: frozenset[str] = frozenset()

    @staticmethod
    def parse(claim: object) -> Subscription:
        """Read a claim. Anything but a well-formed text grants nothing: one element without a colon spoils the whole."""
        return _parse(claim) if isinstance(claim, str) else _NOTHING

    def has(self, asked: str) -> bool:
        """`slug` is looked up in both sets, `org:slug` and `user:slug` in one; any other scope is no. Case counts."""
        if not isinstance(asked, str):
            return False
        parts = asked.split(":")
        if len(parts) == 1:
            return bool(asked) and (asked in self.org or asked in self.user)
        scope, slug = parts[0], parts[1]
        if not slug:
            return False
        if scope in _ORG_WORDS:
            return slug in self.org
        return scope in _USER_WORDS and slug in self.user


_NOTHING = Subscription()


@lru_cache(maxsize=1024)
def _parse(claim: str) -> Subscription:
    org, user = set(), set()
    for element in claim.split(","):
        scope, colon, slug = element.strip().partition(":")
        if not colon:
            return _NOTHING
        if scope in ("o", "ou", "uo"):
            org.add(slug)
        if scope in ("u", "ou", "uo"):
            user.add(slug)
    return Subscription(frozenset(org - {""}), frozenset(user - {""}))
