"""Bring the database's schema up to date, as its owner (DATABASE_OWNER_URL)."""

from __future__ import annotations

import argparse
import asyncio
from urllib.parse import urlsplit

from ..database import direct_connection
from ..migrate import migrate
from ..settings import ConfigError, Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """No flags of its own."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Apply schema.sql in one transaction and print what is still to be done by hand."""
    if settings.get("database.url") is None:
        raise ConfigError("migrate: the embedded Postgres migrates itself at start; set DATABASE_URL and DATABASE_OWNER_URL")
    owner = settings.get("database.owner_url")
    if owner is None:
        raise ConfigError("database.owner_url (DATABASE_OWNER_URL): migrate needs the owner's URL")
    for line in asyncio.run(_migrate(owner, serving_role(settings.get("database.url")))):
        print(line)
    print("migrated")
    return 0


def serving_role(url: str) -> str:
    """The role that DATABASE_URL names, or gatepost_app where it names none."""
    return urlsplit(url).username or "gatepost_app"


async def _migrate(owner: str, role: str) -> list[str]:
    async with direct_connection({"dsn": owner}) as connection:
        return await migrate(connection, serving_role=role)
