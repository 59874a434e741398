"""Reads Clerk's `fea` and `pla` claims: the features and plans of the caller's user and organisation.

A claim is a comma-separated list of `scope:slug`; the scope is `o` (organisation), `u` (user), or both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_ORG_WORDS = frozenset({"o", "org", "organization"})
_USER_WORDS = frozenset({"u", "user"})


@dataclass(frozen=True, slots=True)
class Subscription:
    """The slugs of the organisation and of the user."""

    org: frozenset[str] = frozenset()
    user: frozenset[str] = frozenset()

    @staticmethod
    def parse(claim: object) -> Subscription:
        """Read a claim. A malformed one grants nothing at all, even where only one element lacks its colon."""
        return _parse(claim) if isinstance(claim, str) else _NOTHING

    def has(self, name: str) -> bool:
        """Is this feature or plan there? `slug` may be in either set, `org:slug` or `user:slug` in one only. Case counts."""
        if not isinstance(name, str):
            return False
        parts = name.split(":")
        if len(parts) == 1:
            return bool(name) and (name in self.org or name in self.user)
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
