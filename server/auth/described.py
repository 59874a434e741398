"""The identity of a caller who is described instead of authenticated: for `explain`, `access` and tests of the access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .identity import Identity

_LISTS: Final = ("permission", "scope", "feature", "plan")
MEMBERS: Final = ("user", "org", "role", "token_type", "impersonator", *_LISTS)
"""The names of the members that describe a caller, as arguments and in a file."""


def identity_from(given: Mapping[str, Any]) -> Identity:
    """Returns the caller with these MEMBERS; without a user, an organisation's key. Raises ValueError for an impossible one."""
    if given.get("role") and not given.get("org"):
        raise ValueError("a role needs an organisation: add --org")
    lists = {name: _words(name, given.get(name)) for name in _LISTS}
    token_type = given.get("token_type") or ("session_token" if given.get("user") else "api_key")
    sessions = ("session_token", "access_token")
    if token_type in sessions and not given.get("user"):
        raise ValueError(f"a {token_type} has a user: add --user")
    for name in ("feature", "plan"):
        if not all(":" in word for word in lists[name]):
            raise ValueError(f"a {name} begins with o: or u:, such as o:{lists[name][0]}")
    claims = {"fea": ",".join(lists["feature"]), "pla": ",".join(lists["plan"])}
    return Identity(
        provider="explain",
        token_type=token_type,
        user_id=given.get("user") or None,
        org_id=given.get("org") or None,
        org_role=given.get("role") or None,
        org_permissions=lists["permission"],
        scopes=lists["scope"],
        claims={name: text for name, text in claims.items() if text} or None,
        key_id="key" if token_type.endswith("api_key") else None,
        impersonator=given.get("impersonator") or None,
    )


def _words(name: str, value: object) -> Sequence[str]:
    words = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"{name}: must be a list of words")
    return list(words)
