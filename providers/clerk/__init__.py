"""Clerk (clerk.com): its session tokens, and a local stand-in for development."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from server import Command, CommandContext, Provider, Setting, hookimpl

from . import development
from .provider import NAME, ClerkProvider
from .settings import TABLE, ClerkSettings

_MAX_TTL = 86_400


@hookimpl
def register_providers() -> Mapping[str, Any]:
    """The provider's name and factory."""
    return {NAME: make}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    """The keys of the table [clerk]."""
    return TABLE


@hookimpl
def register_commands() -> Mapping[str, Command]:
    """`token`: print a development session token."""
    return {"token": Command("print a development session token", _arguments, _token)}


def make(settings: Mapping[str, Any]) -> Provider:
    """The provider for the table [clerk]. Raises ValueError for a mistake in it."""
    return ClerkProvider(settings)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", default="user_1", help="the user's id (default: user_1)")
    parser.add_argument("--org", help="the active organisation's id")
    parser.add_argument("--role", help="the role in it, such as org:admin (default: org:member)")
    parser.add_argument("--permission", action="append", default=[], help="such as org:invoices:read; may be repeated")
    parser.add_argument("--ttl", type=int, default=3600, help="how long it holds, in seconds (default: 3600)")


async def _token(arguments: argparse.Namespace, context: CommandContext) -> int:
    if context.env == "production" or ClerkSettings.read(context.settings).configured:
        raise ValueError("development tokens are taken only outside production and without any CLERK_ setting")
    if not 0 < arguments.ttl <= _MAX_TTL:
        raise ValueError(f"--ttl must be from 1 to {_MAX_TTL} seconds")
    claims = development.claims_v2(
        arguments.user, org=arguments.org, role=arguments.role, permissions=arguments.permission, ttl=arguments.ttl
    )
    print(development.mint(development.signing_key(context.folder), claims))
    return 0
