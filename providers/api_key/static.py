"""Static keys: `[[api_key.keys]]` in the settings. Only hashes are there, so the settings hold no usable key."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from server import Identity, nearest_name

_HASH = re.compile(r"sha256:([0-9a-f]{64})\Z")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_MEMBERS = frozenset({"id", "hash", "user_id", "org_id", "org_slug", "org_role", "org_permissions", "scopes", "expires_at"})


@dataclass(frozen=True, slots=True)
class StaticKey:
    """One `[[api_key.keys]]`: the key's SHA-256, its owner, and when it expires (Unix seconds; None: never)."""

    digest: bytes
    identity: Identity
    expires_at: float | None

    @property
    def id(self) -> str:
        return str(self.identity.key_id)

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()


def static_keys(tables: Iterable[Mapping[str, Any]] | None) -> dict[bytes, StaticKey]:
    """Returns the keys by their digests. Raises ValueError for an invalid or duplicate one."""
    keys: dict[bytes, StaticKey] = {}
    ids: set[str] = set()
    for number, table in enumerate(tables or ()):
        key = _static_key(number, table)
        if key.id in ids or key.digest in keys:
            raise ValueError(f"api_key.keys: duplicate id or hash ({key.id!r})")
        ids.add(key.id)
        keys[key.digest] = key
    return keys


def _static_key(number: int, table: Mapping[str, Any]) -> StaticKey:
    where = f"api_key.keys[{number}]"
    if unknown := sorted(set(table) - _MEMBERS):
        near = nearest_name(unknown[0], sorted(_MEMBERS))
        raise ValueError(f"{where}: unknown member {unknown[0]!r}" + (f"; the nearest known one is {near!r}" if near else ""))
    if not isinstance(table.get("id"), str) or not _ID.match(table["id"]):
        raise ValueError(f"{where}: id must be 1 to 64 letters, digits, '.', '_' or '-'")
    where = f"api_key.keys {table['id']!r}"
    hashed = _HASH.match(table["hash"]) if isinstance(table.get("hash"), str) else None
    if hashed is None:
        raise ValueError(f"{where}: hash must be 'sha256:' and 64 hexadecimal digits (`python -m server keys hash`)")
    if table.get("user_id") is None and table.get("org_id") is None:
        raise ValueError(f"{where}: user_id, org_id or both are required")
    texts = {name: _text(where, table, name) for name in ("user_id", "org_id", "org_slug", "org_role")}
    lists = {name: _list(where, table, name) for name in ("org_permissions", "scopes")}
    if texts["org_id"] is None and (texts["org_role"] or lists["org_permissions"]):
        raise ValueError(f"{where}: org_role and org_permissions require org_id")
    # The operator confirms the key at every start of the server, so revocations from before the start do not apply to it.
    said: dict[str, Any] = {**texts, **lists, "key_id": table["id"], "issued_at": time.time()}
    expires_at = _moment(where, table.get("expires_at"))
    identity = Identity(provider="api_key", token_type="api_key", expires_at=expires_at, **said)
    return StaticKey(bytes.fromhex(hashed[1]), identity, expires_at)


def _text(where: str, table: Mapping[str, Any], name: str) -> str | None:
    value = table.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{where}: {name} must be a string")
    return value


def _list(where: str, table: Mapping[str, Any], name: str) -> Sequence[str] | None:
    value = table.get(name)
    if value is not None and (not isinstance(value, list) or not all(isinstance(word, str) and word for word in value)):
        raise ValueError(f"{where}: {name} must be a list of strings")
    return value


def _moment(where: str, value: object) -> float | None:
    """Returns `expires_at` in Unix seconds. It is a TOML date, a TOML time with an offset, or a string (RFC 3339)."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"{where}: expires_at must be a date, or a time with its offset from UTC")
    return moment.timestamp()
