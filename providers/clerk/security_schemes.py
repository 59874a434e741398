"""The OpenAPI security schemes of Clerk's credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

SECURITY_SCHEMES: Final[Mapping[str, Mapping[str, Any]]] = {
    "clerk": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A Clerk session token. In development: `python -m server token`.",
        "x-gatepost-token-types": ["session_token"],
    },
    "clerk_cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "__session",
        "description": "The session cookie of a signed-in browser. It is read only if no header contains a credential.",
        "x-gatepost-token-types": ["session_token"],
    },
    "clerk_machine": {
        "type": "http",
        "scheme": "bearer",
        "description": "A Clerk machine token (`ak_`, `mt_`, `oat_`, or an OAuth or M2M JWT), on routes that accept its type.",
        "x-gatepost-token-types": ["clerk_api_key", "m2m_token", "oauth_token"],
    },
}
