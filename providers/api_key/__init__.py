"""API keys: `Authorization: Bearer gp_…` or `X-API-Key: gp_…`. Static ones from the settings, managed ones from Postgres.

Only hashes of both kinds are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from server import Provider, Setting, hookimpl

from .commands import commands
from .provider import ApiKeyProvider
from .routes import Keys

register_commands = hookimpl(commands, specname="register_commands")

_HELP = "static keys, as many tables as there are keys; `python -m server keys hash` prints the hash of one"
_EXAMPLE = {
    "id": "nightly", "hash": "sha256:" + 64 * "0", "user_id": "user_1", "org_id": "org_1", "org_slug": "one",
    "org_role": "org:member", "org_permissions": ["org:invoices:read"], "scopes": ["reports"],
    "expires_at": datetime(2030, 1, 1, tzinfo=UTC),
}  # fmt: skip

# The routes of the server that is being put together. Hooks and factories are called once for each server, one after the
# other in one thread; this is how what the provider learns when it is opened (the environment) reaches its routes.
_latest: Keys | None = None


@hookimpl
def register_providers() -> Mapping[str, Callable[[Mapping[str, Any]], Provider]]:
    return {"api_key": _make}


@hookimpl
def register_handlers(settings: Mapping[str, Any]) -> Iterable[web.RouteDef]:
    """The routes under /api/keys. Raises ValueError for an invalid static key."""
    global _latest
    _latest = Keys(settings)
    return _latest.routes()


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    return {
        "keys": Setting("tables", (), example=(_EXAMPLE,), help=_HELP),
        "scopes": Setting("list", (), help="scopes that a session may give to a key"),
        "max_per_user": Setting("int", 100, help="live keys that a user may have; more are refused with 409 `key-limit`"),
        "max_per_organization": Setting("int", 1000, help="live keys that an organisation may have, users' keys not counted"),
    }


def _make(settings: Mapping[str, Any]) -> Provider:
    return ApiKeyProvider(settings, _latest.opened if _latest is not None else lambda house: None)
