"""Compares rights: a key has no more than its creator, nor than the recorded membership of its owner."""

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


def within_membership(identity: Identity, role: str | None, permissions: Collection[str]) -> Identity:
    """Returns a key's caller with the role and permissions that this membership has too."""
    member = Identity(
        provider=identity.provider, token_type="api_key", org_id=identity.org_id, org_role=role, org_permissions=permissions
    )
    return within(identity, member, None)


def within(identity: Identity, bound: Identity, scopes: Collection[str] | None) -> Identity:
    """Returns a key's caller with those of its rights that `bound` and `scopes` have too; None for `scopes`: all of its own."""
    role = identity.org_role if identity.org_role is not None and bound.has(role=identity.org_role) else None
    permissions = identity.org_permissions
    if permissions is not None:
        permissions = tuple(one for one in permissions if bound.has(permission=one))
    kept = identity.scopes
    if kept is not None and scopes is not None:
        kept = tuple(one for one in kept if one in scopes)
    if (role, permissions, kept) == (identity.org_role, identity.org_permissions, identity.scopes):
        return identity
    narrowed = Identity(
        provider=identity.provider, token_type=identity.token_type, user_id=identity.user_id, org_id=identity.org_id,
        org_slug=identity.org_slug, org_role=role, org_permissions=permissions, scopes=kept, issued_at=identity.issued_at,
        expires_at=identity.expires_at, key_id=identity.key_id,
    )  # fmt: skip
    narrowed.derived.update(identity.derived)
    return narrowed
