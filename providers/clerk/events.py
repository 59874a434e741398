"""Reduces a Clerk event to what is stored: the fields of our tables; of other events, everything that is no secret."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from server import with_org_prefix

_TYPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*")
_ID: Final = re.compile(r"[!-{}~]{1,255}")  # no id of Clerk's has a "|", which ends the namespace of another issuer's
_LONGEST_TEXT: Final = 2000
_DEPTH: Final = 16
# Seconds. Clocks may differ; a time further in the future would prevent all later events from being applied.
_AHEAD: Final = 300
_SECRET: Final = re.compile(
    r"private_metadata|unsafe_metadata|secret|token|ticket|passw|passkey|otp|backup_code|\bcode\b|url\b"
)
# Messages contain codes and sign-in links, sessions a whole user: only ids, states and times of them are kept.
_SPARSE: Final = ("email.", "sms.", "session.", "invitation.", "organizationInvitation.", "waitlistEntry.")
_SPARSE_NAMES: Final = re.compile(r"id|[a-z_]+_id|object|status|slug|created_at|updated_at")

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """`at`: when it happened, by Clerk's clock. `payload`: for apply_clerk_event; it has an `id` if it can be applied."""

    type: str
    at: datetime
    payload: Json


def normalise(event: object, delivered: float) -> Event:
    """Returns the event of a verified delivery sent at `delivered` (Unix seconds). Raises ValueError if it is no event."""
    kind = event.get("type") if isinstance(event, Mapping) else None
    data = event.get("data") if isinstance(event, Mapping) else None
    if not isinstance(event, Mapping) or not isinstance(kind, str) or len(kind) > 100 or not _TYPE.fullmatch(kind):
        raise ValueError("not an event")
    if not isinstance(data, Mapping):
        raise ValueError("an event without data")
    at = _moment(event.get("timestamp"), delivered) or datetime.fromtimestamp(delivered, UTC)
    reader = _READERS.get(kind.partition(".")[0] if kind not in _DELETED else kind)
    if reader is None or (kind.startswith("session.") and kind not in _SESSION_ENDS):
        return Event(kind, at, {"data": _clean(data, _DEPTH, sparse=kind.startswith(_SPARSE))})
    updated = _moment(data.get("updated_at"), delivered) or at
    created = _moment(data.get("created_at"), delivered) or updated
    try:
        payload = reader(data)
    except ValueError:
        return Event(kind, at, {"malformed": _clean(data, _DEPTH, sparse=True)})
    if kind not in _DELETED:
        payload |= {"created_at": created.isoformat(), "updated_at": updated.isoformat()}
    return Event(kind, at, payload)


def _user(data: Mapping[str, Any]) -> Json:
    email = _primary_email(data)
    verification = email.get("verification")
    return {
        "id": _id(data.get("id")),
        **{name: _text(data.get(name)) for name in ("external_id", "username", "first_name", "last_name", "image_url")},
        "email": _text(email.get("email_address")),
        "email_verified": isinstance(verification, Mapping) and verification.get("status") == "verified",
        # A user whom the company's directory has removed counts as banned.
        "banned": data.get("banned") is True or data.get("deprovisioned") is True,
        "locked": data.get("locked") is True,
        "public_metadata": _metadata(data),
    }


def _primary_email(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the user's primary address, which need not be the first of the list; {} if there is none."""
    primary, addresses = data.get("primary_email_address_id"), data.get("email_addresses")
    for one in addresses if isinstance(addresses, list) else ():
        if isinstance(one, Mapping) and primary is not None and one.get("id") == primary:
            return one
    return {}


def _organization(data: Mapping[str, Any]) -> Json:
    texts = {name: _text(data.get(name)) for name in ("name", "slug", "image_url", "created_by")}
    return {"id": _id(data.get("id")), **texts, "public_metadata": _metadata(data)}


def _membership(data: Mapping[str, Any]) -> Json:
    organization, user, permissions = data.get("organization"), data.get("public_user_data"), data.get("permissions")
    return {
        "id": _id(data.get("id")),
        "organization_id": _id(organization.get("id") if isinstance(organization, Mapping) else None),
        "user_id": _id(user.get("user_id") if isinstance(user, Mapping) else None),
        "role": _role(data.get("role")),
        "permissions": [_text(one) for one in permissions if isinstance(one, str)] if isinstance(permissions, list) else [],
    }


def _session(data: Mapping[str, Any]) -> Json:
    return {"id": _id(data.get("id")), "user_id": _text(data.get("user_id"))}


def _role_event(data: Mapping[str, Any]) -> Json:
    return {"id": _role(data.get("key"))}  # tokens name a role by its key


def _only_id(data: Mapping[str, Any]) -> Json:
    return {"id": _id(data.get("id"))}


_DELETED: Final = frozenset({"user.deleted", "organization.deleted"})
_SESSION_ENDS: Final = frozenset({"session.ended", "session.removed", "session.revoked"})
ENDS: Final = _DELETED | _SESSION_ENDS | {
    "user.created", "user.updated", "organizationMembership.updated", "organizationMembership.deleted", "role.updated",
    "role.deleted",
}  # fmt: skip
"""The events that may end access. A ban is reported as user.updated."""
_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Json]]] = {
    "user": _user,
    "organization": _organization,
    "organizationMembership": _membership,
    "session": _session,
    "role": _role_event,
    "user.deleted": _only_id,
    "organization.deleted": _only_id,
}


def _id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError("not an id")
    return value


def _role(value: object) -> str:
    return with_org_prefix(_id(value))


def _text(value: object) -> str | None:
    """Returns a text that Postgres can store, without NUL and lone surrogates, cut to 2000 characters; None for no text."""
    if not isinstance(value, str):
        return None
    return value[:_LONGEST_TEXT].replace("\x00", "").encode("utf-8", "replace").decode()


def _metadata(data: Mapping[str, Any]) -> Any:
    """Returns the public metadata under all its names: the application chose them, and every browser can read it."""
    value = data.get("public_metadata")
    return _clean(value, _DEPTH, every=True) if isinstance(value, Mapping) else {}


def _clean(value: Any, depth: int, *, sparse: bool = False, every: bool = False) -> Any:
    """Returns `value` without members that may be secret (`every`: with all) and without what Postgres cannot store."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == 0:
        return None
    if isinstance(value, Mapping):
        names = [
            name for name in value if every or (_SPARSE_NAMES.fullmatch(name) if sparse else not _SECRET.search(name.lower()))
        ]
        return {_text(name) or "": _clean(value[name], depth - 1, sparse=sparse, every=every) for name in names}
    if isinstance(value, list):
        return [_clean(one, depth - 1, sparse=sparse, every=every) for one in value]
    return value


def _moment(value: object, delivered: float) -> datetime | None:
    """Returns the time of a number of milliseconds or seconds, at most `delivered` + 300 s; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e14:
        return None
    seconds = value / 1000 if value > 1e11 else float(value)
    return datetime.fromtimestamp(min(seconds, delivered + _AHEAD), UTC)
