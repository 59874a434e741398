"""Fetches the key set of a Clerk instance: from the Backend API with the secret key, else from the public Frontend API."""

from __future__ import annotations

from typing import Final

from server import House, Unavailable

from ..jwt.texts import retry_after
from .settings import ClerkSettings

API_VERSION: Final = "2026-05-12"


async def fetch_keys(house: House | None, settings: ClerkSettings) -> bytes:
    """Returns the key set (JSON). Raises Unavailable."""
    if house is None or settings.jwks_url is None:
        raise Unavailable("the provider is not open")
    headers = {"Accept": "application/json"}
    if settings.secret_key is not None:
        headers |= {"Authorization": f"Bearer {settings.secret_key}", "Clerk-API-Version": API_VERSION}
    answer = await house.fetch(settings.jwks_url, headers=headers)
    if answer.status in (401, 403) and settings.secret_key is not None:
        raise Unavailable(f"Clerk answered {answer.status}: check CLERK_SECRET_KEY")
    if answer.status != 200:
        raise Unavailable(f"Clerk answered {answer.status}", retry_after=retry_after(answer.headers))
    return answer.body
