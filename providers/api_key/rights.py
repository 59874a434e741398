"""Checks that a new key gets no more rights than its creator has."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from server import Identity


def excess(
    caller: Identity,
    org_id: str | None,
    role: str | None,
    permissions: Iterable[str],
    scopes: Collection[str],
    listed: Collection[str],
) -> str | None:
    """Returns which of these rights exceeds the caller's, as the `reason` of the 403, or None.

    `listed` are the scopes that a session may grant; a key may grant only its own.
    """
    if org_id is not None and org_id != caller.org_id:
        return "organization"
    if role is not None and not caller.has(role=role):
        return "role"
    if not all(caller.has(permission=permission) for permission in permissions):
        return "permission"
    allowed = (caller.scopes or ()) if caller.token_type == "api_key" else listed
    return None if set(scopes) <= set(allowed) else "scope"
