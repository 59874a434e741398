"""What the operator should know at startup about settings that are allowed and probably not meant."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Final

from ..jwt.variables import unread
from .audience import MachineAudience
from .settings import TABLE, ClerkSettings

_OTHER_NAMES: Final = {
    "CLERK_WEBHOOK_SECRET": "webhook_signing_secret",
    "SVIX_WEBHOOK_SECRET": "webhook_signing_secret",
    "CLERK_API_KEY": "secret_key",
    "CLERK_FRONTEND_API": "publishable_key",
    "CLERK_PEM_PUBLIC_KEY": "jwt_key",
    "CLERK_JWT_VERIFICATION_KEY": "jwt_key",
}
"""Names that Clerk's samples and older libraries use."""
_FOR_FRONT_ENDS: Final = re.compile(
    r"CLERK_(?:SIGN_(?:IN|UP)_|AFTER_SIGN_|WAITLIST_|JS\Z|JS_|UI_|PREFETCH_UI|TELEMETRY_|KEYLESS_|ENABLE_KEYLESS|PROXY_URL|DOMAIN"
    r"|IS_SATELLITE|SATELLITE_|ALLOWED_REDIRECT_|API_VERSION|ENCRYPTION_KEY|FAPI|FRONTEND_API_URL|JWT_ISSUER_DOMAIN|TESTING_TOKEN"
    r"|USER_AGENT|PROXY_SECRET|PLATFORM_)"
)
"""Variables of Clerk's front ends, tools and samples, which share an environment file with this server."""
_LOG: Final = logging.getLogger("gatepost.clerk")
_KNOWN: Final = frozenset(setting.env for setting in TABLE.values() if setting.env)
_ENDING: Final = "_CLERK_PUBLISHABLE_KEY"
"""How a bundler's variable ends: NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY, VITE_CLERK_PUBLISHABLE_KEY."""


def announce(given: frozenset[str], settings: ClerkSettings, env: str, audience: MachineAudience) -> None:
    """Log what `advice` returns for this process's environment as warnings, and how `audience` is checked."""
    audience.announce()
    for line in advice(given, settings, env, os.environ):
        _LOG.warning(line)


def advice(given: frozenset[str], settings: ClerkSettings, env: str, environ: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each such setting, without a secret.

    `given` names the keys of the table [clerk] that have a value; `environ` is the environment of this process.
    """
    found = [_unread(name, key) for name, key in _other_names(environ) if key not in given]
    found += [f"{name} is set and not read{near and f'; the nearest known one is {near}'}" for name, near in _misspelt(environ)]
    publishable = settings.publishable_key
    if publishable is not None and settings.frontend not in settings.issuers:
        found.append(
            f"clerk.issuer does not name {settings.frontend}, the instance of clerk.publishable_key: "
            "unless that instance has a proxy URL, every token of it is refused (token-issuer)"
        )
    if env == "production":
        for key, value in (("secret_key", settings.secret_key), ("publishable_key", publishable)):
            if value is not None and value[2:8] == "_test_":
                found.append(f"clerk.{key} ({TABLE[key].env}) is a test key: users of a development instance are let in")
        insecure = sorted(origin for origin in settings.authorized_parties if origin.startswith("http://"))
        if insecure:
            found.append(f"clerk.authorized_parties has {', '.join(insecure)}: pages without TLS, in production")
    return found


def _other_names(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(variable, key) of the variables that are set and would be read under another name."""
    names = [(name, key) for name, key in _OTHER_NAMES.items() if environ.get(name) or environ.get(f"{name}_FILE")]
    return names + [(name, "publishable_key") for name in sorted(environ) if name.endswith(_ENDING) and environ[name]]


def _misspelt(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(variable, the nearest known one or "") of the variables `CLERK_...` that are set and known neither here nor to Clerk."""
    return [
        (name, near)
        for name, near in unread(environ, "CLERK_", _KNOWN, _FOR_FRONT_ENDS)
        if name.removesuffix("_FILE") not in _OTHER_NAMES
    ]


def keys_elsewhere(environ: Mapping[str, str]) -> str:
    """The end of a sentence on missing settings: the variables that hold one under a name that is not read; "" if none does."""
    keys = {"secret_key", "publishable_key", "jwt_key"}
    names = [f"{name} is not read: this server calls it {TABLE[key].env}" for name, key in _other_names(environ) if key in keys]
    names += [f"{name} is not read: this server calls it {near}" for name, near in _misspelt(environ) if near]
    return f" ({'; '.join(names)})" if names else ""


def _unread(name: str, key: str) -> str:
    return f"{name} is set and not read: this server calls it {TABLE[key].env}, which is not set"
