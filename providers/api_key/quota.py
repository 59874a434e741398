"""Limits the number of an owner's live keys and the depth of keys created by keys."""

from __future__ import annotations

from typing import Any, Final

from server import Identity

DEEPEST: Final = 3
"""The longest chain of keys that each created the next. The schema has the same limit."""
# Counted under a lock, so that two concurrent requests cannot both take the last place.
_TURN: Final = "SELECT pg_advisory_xact_lock(4716, hashtext($1))"
_LIVE: Final = """SELECT count(*) FROM (
    SELECT FROM api_keys WHERE (user_id = $1 OR ($1::text IS NULL AND user_id IS NULL AND org_id = $2))
       AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) LIMIT $3) AS live"""


async def has_room(db: Any, owner: str, caller: Identity, most: int) -> bool:
    """Whether the caller's `user` or `organization` (`owner`) may have one more live key. `db` is a `scoped` transaction."""
    user, org = (caller.user_id, None) if owner == "user" else (None, caller.org_id)
    await db.fetchval(_TURN, f"keys of {owner} {user or org}")
    return bool(await db.fetchval(_LIVE, user, org, most) < most)
