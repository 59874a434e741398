"""The settings of the table [clerk], by the environment variables that Clerk's own libraries use; checked at startup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from server import Setting

from ..jwt.jwk import Key, from_pem
from . import urls
from .secret_key import checked_secret_key

API_URL: Final = "https://api.clerk.com"
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_SECRETS: Final = re.compile(r"[\x20-\x7e]+")  # several during a rotation; webhooks.py splits them

TABLE: Final[Mapping[str, Setting]] = {
    "secret_key": Setting(
        env="CLERK_SECRET_KEY", secret=True, example="sk_test_example", help="Clerk's secret key, sk_...; for the Backend API"
    ),
    "publishable_key": Setting(
        env="CLERK_PUBLISHABLE_KEY", example="pk_test_Y2xlcmsuZXhhbXBsZS5jb20k",
        help="Clerk's publishable key, pk_...; the issuer and its key set's URL are derived from it",
    ),
    "jwt_key": Setting(
        env="CLERK_JWT_KEY", example="the PEM from the dashboard",
        help="the public key as PEM; with it, session tokens are verified without network access",
    ),
    "api_url": Setting(default=API_URL, env="CLERK_API_URL", help="Clerk's Backend API"),
    "machine_secret_key": Setting(
        env="CLERK_MACHINE_SECRET_KEY", secret=True, example="ak_example",
        help="verifies machine tokens that are scoped to one of your machines; unset: the secret key is used",
    ),
    "webhook_signing_secret": Setting(
        env="CLERK_WEBHOOK_SIGNING_SECRET", secret=True, example="whsec_ZXhhbXBsZSBvZiBhIHNpZ25pbmcgc2VjcmV0",
        help="whsec_...; during a rotation several, separated by commas",
    ),
    "authorized_parties": Setting(
        "list", env="CLERK_AUTHORIZED_PARTIES", example=("https://app.example.com",),
        help="origins that a token's azp may name: those of your front ends; required in production",
    ),
    "audience": Setting(
        "list", env="CLERK_AUDIENCE", example=("https://api.example.com",), help="if a token has an audience, one of these"
    ),
    "require_audience": Setting(
        "bool", False, env="CLERK_REQUIRE_AUDIENCE", help="refuse OAuth and M2M tokens that name no audience; needs audience"
    ),
    "audience_mode": Setting(
        "str", "enforce", env="CLERK_AUDIENCE_MODE", choices=("enforce", "observe"),
        help="observe: OAuth and M2M tokens for another audience are accepted, counted and logged, to try the check first",
    ),
    "issuer": Setting(
        "list", env="CLERK_ISSUER", example=("https://clerk.example.com",), help="default: the publishable key's frontend API"
    ),
    "leeway_seconds": Setting(
        "float", 5.0, env="CLERK_LEEWAY_SECONDS", at_least=0, at_most=300, help="how far clocks may differ"
    ),
    "allow_missing_azp": Setting("bool", False, env="CLERK_ALLOW_MISSING_AZP", help="accept header tokens without azp"),
    "max_token_seconds": Setting(
        "float", 86_400.0, env="CLERK_MAX_TOKEN_SECONDS", at_least=0, at_most=2**31,
        help="longest exp - iat, 0: any; also how long a sign-out is remembered: keep it short on a large site",
    ),
    "machine_cache_seconds": Setting(
        "float", 30.0, env="CLERK_MACHINE_CACHE_SECONDS", at_least=0, at_most=300,
        help="how long a valid machine token is cached, and so may work after it was revoked at Clerk; 0: not cached",
    ),
}  # fmt: skip
_CLERKS_OWN: Final = (
    "secret_key", "publishable_key", "jwt_key", "machine_secret_key", "webhook_signing_secret", "authorized_parties",
    "audience", "issuer",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClerkSettings:
    """The checked settings. `jwt_key` is the key; `jwks_url` is the key set's URL, used without a PEM; `frontend` is the
    URL of the publishable key's instance. Times in seconds."""

    secret_key: str | None = field(default=None, repr=False)
    publishable_key: str | None = None
    frontend: str | None = None
    jwt_key: Key | None = field(default=None, repr=False)
    api_url: str = API_URL
    machine_secret_key: str | None = field(default=None, repr=False)
    authorized_parties: frozenset[str] = frozenset()
    audience: frozenset[str] = frozenset()
    require_audience: bool = False
    audience_mode: str = "enforce"
    issuers: frozenset[str] = frozenset()
    leeway: float = 5.0
    allow_missing_azp: bool = False
    max_lifetime: float = 86_400.0
    machine_cache: float = 30.0
    jwks_url: str | None = None
    configured: bool = False  # is any of Clerk's own settings set? Then the development key is never trusted

    @staticmethod
    def read(table: Mapping[str, Any]) -> ClerkSettings:
        """Check the plugin's table. Raises ValueError that names the setting, and never contains a secret."""
        secret = checked_secret_key("clerk.secret_key", table.get("secret_key"))
        publishable = _text(table, "publishable_key", _TOKEN, "must be one word")
        frontend = urls.frontend("clerk.publishable_key", publishable) if publishable else None
        if secret and publishable and secret[:7] != "s" + publishable[1:7]:
            raise ValueError("clerk.secret_key and clerk.publishable_key are of different kinds (test and live)")
        api_url = urls.api("clerk.api_url", _text(table, "api_url", _TOKEN, "must be a URL") or API_URL)
        jwks_url = f"{api_url}/v1/jwks" if secret else f"{frontend}/.well-known/jwks.json" if frontend else None
        issuers = frozenset(urls.issuer("clerk.issuer", issuer) for issuer in _words(table, "issuer"))
        _text(table, "webhook_signing_secret", _SECRETS, "must be one line")  # webhooks.py reads the keys in it
        return ClerkSettings(
            secret_key=secret,
            publishable_key=publishable,
            frontend=frontend,
            jwt_key=_pem(table),
            api_url=api_url,
            machine_secret_key=_text(table, "machine_secret_key", _TOKEN, "must be one word"),
            authorized_parties=_origins(table),
            audience=_audience(table),
            require_audience=bool(table.get("require_audience")),
            audience_mode=table.get("audience_mode") or "enforce",
            issuers=issuers or (frozenset({frontend}) if frontend else frozenset()),
            leeway=_seconds(table, "leeway_seconds"),
            allow_missing_azp=bool(table.get("allow_missing_azp")),
            max_lifetime=_seconds(table, "max_token_seconds"),
            machine_cache=_seconds(table, "machine_cache_seconds"),
            jwks_url=jwks_url,
            configured=any(table.get(name) for name in _CLERKS_OWN) or api_url != API_URL,
        )

    def check(self, env: str, hint: str = "") -> None:
        """Raises ValueError that names what is missing if these settings are not sufficient to start in `env`.

        `hint` ends the sentence on what is missing: where they may be instead.
        """
        has_keys = self.jwt_key is not None or self.jwks_url is not None
        if not has_keys and (self.configured or env == "production"):
            names = "CLERK_SECRET_KEY, CLERK_PUBLISHABLE_KEY or CLERK_JWT_KEY"
            raise ValueError(f"clerk has no keys to verify tokens with: set {names}{hint}")
        if env == "production" and not self.issuers:
            raise ValueError(f"clerk needs an issuer in production: set CLERK_PUBLISHABLE_KEY or CLERK_ISSUER{hint}")
        if env == "production" and not self.authorized_parties:
            raise ValueError(f"clerk needs authorized parties in production: set CLERK_AUTHORIZED_PARTIES{hint}")


def _text(table: Mapping[str, Any], name: str, form: re.Pattern[str], rule: str) -> str | None:
    value = table.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError(f"clerk.{name} {rule}" if value != "" else f"clerk.{name} is set but empty")
    return value


def _pem(table: Mapping[str, Any]) -> Key | None:
    value = table.get("jwt_key")
    if value is None:
        return None
    try:
        return from_pem(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError(f"clerk.jwt_key {error}") from None


def _words(table: Mapping[str, Any], name: str) -> frozenset[str]:
    values = table.get(name)
    if values is None:
        return frozenset()
    fine = isinstance(values, list | tuple)
    if not fine or not all(isinstance(word, str) and word.strip() == word != "" for word in values):
        raise ValueError(f"clerk.{name} must be a list of strings, none of them empty")
    return frozenset(values)


def _audience(table: Mapping[str, Any]) -> frozenset[str]:
    words = _words(table, "audience")
    for name, value in (("require_audience", True), ("audience_mode", "observe")):
        if not words and table.get(name) == value:
            raise ValueError(f"clerk.{name} has no effect without clerk.audience: set CLERK_AUDIENCE to your API's audiences")
    return words


def _origins(table: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(urls.origin("clerk.authorized_parties", origin) for origin in _words(table, "authorized_parties"))


def _seconds(table: Mapping[str, Any], name: str) -> float:
    """The value, whose bounds the server has checked; the default where the table has none."""
    return float(table.get(name, TABLE[name].default))
