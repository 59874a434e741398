"""Clerk's credentials, as the OpenAPI document names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

SECURITY_SCHEMES: Final[Mapping[str, Mapping[str, Any]]] = {
    "clerk": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A session token of Clerk's. For development: `python -m server token`.",
        "x-gatepost-token-types": ["session_token"],
    },
    "clerk_cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "__session",
        "description": "The session cookie of a browser that is signed in. It is read where no header holds a credential.",
        "x-gatepost-token-types": ["session_token"],
    },
    "clerk_machine": {
        "type": "http",
        "scheme": "bearer",
        "description": "A machine token of Clerk's (`ak_`, `mt_`, `oat_`), on routes that ask for its type.",
        "x-gatepost-token-types": ["clerk_api_key", "m2m_token", "oauth_token"],
    },
}
