"""Clerk (clerk.com): its session tokens and webhooks, and a local stand-in for development."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from server import Command, Provider, Setting, hookimpl

from . import replay_command as replay
from . import token_command, webhooks
from .provider import NAME, ClerkProvider
from .settings import TABLE


@hookimpl
def register_providers() -> Mapping[str, Any]:
    """The provider's name and factory."""
    return {NAME: make}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    """The keys of the table [clerk]."""
    return TABLE


@hookimpl
def register_handlers(settings: Mapping[str, Any]) -> Iterable[web.RouteDef]:
    """The webhooks' route. Raises ValueError for a bad signing secret."""
    return webhooks.routes(settings)


@hookimpl
def register_commands() -> Mapping[str, Command]:
    """`token` prints a development session token, `replay` applies kept webhook events again."""
    return {
        "token": Command("Print a development session token", token_command.arguments, token_command.run),
        "replay": Command("Apply the stored events of Clerk's webhooks again", replay.arguments, replay.run),
    }


def make(settings: Mapping[str, Any]) -> Provider:
    """The provider for the table [clerk]. Raises ValueError for a mistake in it."""
    return ClerkProvider(settings)
