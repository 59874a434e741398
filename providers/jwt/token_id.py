"""Reads the id of a verified token, its claim `jti` (RFC 7519 4.1.7), by which an operator can revoke it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server import is_plain_text


def token_id_of(claims: Mapping[str, Any]) -> str | None:
    """Returns the `jti`, or None where there is none that could be stored."""
    token_id = claims.get("jti")
    return token_id if is_plain_text(token_id) else None
