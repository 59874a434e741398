"""Acme's plugin for Gatepost: a provider for its opaque tokens, and to-do lists of organisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from server import Provider, Setting, hookimpl

from .handlers import routes
from .provider import AcmeProvider


@hookimpl
def register_providers() -> Mapping[str, Callable[[Mapping[str, Any]], Provider]]:
    return {"acme": AcmeProvider}


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    return {
        "url": Setting(help="where Acme tells whose a token is, https://login.acme.example/introspect"),
        "secret": Setting(env="ACME_SECRET", secret=True, help="what this server shows Acme when it asks"),
        "cache_seconds": Setting("int", 30, help="how long an answer is remembered; a revoked token counts that long"),
    }
