"""Says whose key it is. Nothing is stored that could be used as a key."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from aiohttp import hdrs, web

from server import CredentialRejected, Identity

PREFIX = "gp_"
_HASH = re.compile(r"sha256:([0-9a-f]{64})\Z")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_KEY = re.compile(r"gp_[!-~]{13,509}\Z")
_MEMBERS = frozenset({"id", "hash", "user_id", "org_id", "org_slug", "org_role", "org_permissions", "scopes", "expires_at"})


@dataclass(frozen=True, slots=True)
class StaticKey:
    """One `[[api_key.keys]]`: the digest of the key, whose it is, and until when (Unix seconds, or None)."""

    digest: bytes
    identity: Identity
    expires_at: float | None


class ApiKeyProvider:
    """Takes what begins with `gp_`, from `Authorization: Bearer` or `X-API-Key`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError for a key that is not well described."""
        self._keys: dict[bytes, StaticKey] = {}
        ids: set[str] = set()
        for number, table in enumerate(settings["keys"] or ()):
            key = _static_key(number, table)
            if key.identity.key_id in ids or key.digest in self._keys:
                raise ValueError(f"api_key.keys: the id or the hash of {key.identity.key_id!r} stands there twice")
            ids.add(str(key.identity.key_id))
            self._keys[key.digest] = key

    async def authenticate(self, request: web.Request) -> Identity | None:
        secret = credential(request)
        if secret is None:
            return None
        # A key is 256 bits of chance: one SHA-256 is enough, a slow hash would only be a way to slow the server. The
        # digest is what is looked up, so the time it takes says nothing of the key; the comparison is belt and braces.
        digest = hashlib.sha256(secret.encode()).digest()
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise CredentialRejected("credential-rejected", "no such key")
        if key.expires_at is not None and key.expires_at <= time.time():
            raise CredentialRejected("key-expired", f"key {key.identity.key_id}")
        return key.identity


def credential(request: web.Request) -> str | None:
    """The key that a request shows, or None where it shows none. What X-API-Key holds is ours whatever it looks like."""
    shown = request.headers.get("X-API-Key")
    if shown is None:
        scheme, _, shown = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not shown.startswith(PREFIX):
            return None
    if not _KEY.match(shown):
        raise CredentialRejected("credential-rejected", "not the form of a key")
    return shown


def _static_key(number: int, table: Mapping[str, Any]) -> StaticKey:
    where = f"api_key.keys[{number}]"
    if unknown := set(table) - _MEMBERS:
        raise ValueError(f"{where}: unknown member {sorted(unknown)[0]!r}")
    if not isinstance(table.get("id"), str) or not _ID.match(table["id"]):
        raise ValueError(f"{where}: id must be 1 to 64 letters, digits, '.', '_' or '-'")
    where = f"api_key.keys {table['id']!r}"
    hashed = _HASH.match(table["hash"]) if isinstance(table.get("hash"), str) else None
    if hashed is None:
        raise ValueError(f"{where}: hash must be 'sha256:' and 64 hexadecimal digits (`python -m server keys hash`)")
    if table.get("user_id") is None and table.get("org_id") is None:
        raise ValueError(f"{where}: it must belong to a user_id, an org_id, or both")
    texts = {name: _text(where, table, name) for name in ("user_id", "org_id", "org_slug", "org_role")}
    lists = {name: _list(where, table, name) for name in ("org_permissions", "scopes")}
    if texts["org_id"] is None and (texts["org_role"] or lists["org_permissions"]):
        raise ValueError(f"{where}: a role or permissions without an org_id")
    identity = Identity(provider="api_key", token_type="api_key", key_id=table["id"], **texts, **lists)  # type: ignore[arg-type]
    return StaticKey(bytes.fromhex(hashed[1]), identity, _moment(where, table.get("expires_at")))


def _text(where: str, table: Mapping[str, Any], name: str) -> str | None:
    value = table.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{where}: {name} must be a text")
    return value


def _list(where: str, table: Mapping[str, Any], name: str) -> Sequence[str] | None:
    value = table.get(name)
    if value is not None and (not isinstance(value, list) or not all(isinstance(word, str) and word for word in value)):
        raise ValueError(f"{where}: {name} must be a list of texts")
    return value


def _moment(where: str, value: object) -> float | None:
    """Unix seconds of `expires_at`: a TOML date and time with an offset, or the same as a text (RFC 3339)."""
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
