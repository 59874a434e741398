"""API keys: `Authorization: Bearer gp_…` or `X-API-Key: gp_…`. Keys from the settings, of which only hashes are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from server import Provider, Setting, hookimpl

from .commands import commands
from .provider import ApiKeyProvider

register_commands = hookimpl(commands, specname="register_commands")


@hookimpl
def register_providers() -> Mapping[str, Callable[[Mapping[str, Any]], Provider]]:
    return {"api_key": ApiKeyProvider}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    return {
        "keys": Setting("tables", (), help="static keys: id, hash, user_id, org_id, org_role, org_permissions, scopes …"),
        "scopes": Setting("list", (), help="scopes that a session may give to a key"),
    }
