"""Makes the rules for cross-origin requests from the settings and the providers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..http.cors import Cors, checked_header, checked_origins
from ..plugins.providers import LoadedProvider, exposed_headers, read_headers
from ..settings.setting import ConfigError
from ..settings.sources import Settings


def cors_of(settings: Settings, providers: Sequence[LoadedProvider]) -> Cors:
    """The rules of `cors_origins`, `cors_headers` and `cors_exposed`. Raises ConfigError for a mistake in them."""
    return Cors(
        _origins(settings, providers),
        headers=(*read_headers(providers), *_checked(settings, "cors_headers", checked_header)),
        exposed=(*exposed_headers(providers), *_checked(settings, "cors_exposed", checked_header)),
        cookies_for_patterns=settings.get("env") != "production",
    )


def _origins(settings: Settings, providers: Sequence[LoadedProvider]) -> list[str]:
    if settings.get("cors_origins") is not None:
        return _checked(settings, "cors_origins", checked_origins)
    return [origin for one in providers for origin in one.authorized_parties if "*" not in origin]


def _checked(settings: Settings, key: str, check: Callable[[str], str]) -> list[str]:
    try:
        return [check(word) for word in settings.words(key)]
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
