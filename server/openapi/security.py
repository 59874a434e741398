"""The credentials that the loaded providers accept, as OpenAPI security schemes, and those that a route accepts.

A generated client fills every scheme of a route that it has a credential for, but a request must have one credential only.
So a route never lists two places for the same credential, and all bearer tokens are one scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..auth.access import Access
from ..plugins.providers import LoadedProvider
from ..settings.setting import ConfigError

TOKEN_TYPES: Final = "x-gatepost-token-types"
"""Extension of a scheme: the token types that its credentials can have. Without it: any type."""
BEARER: Final = "bearerAuth"
"""The one scheme for the bearer tokens of all providers."""
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+\Z")  # OpenAPI 3.1.1, 4.8.7.2
_NEEDS: Final = {
    "apiKey": ("name", "in"),
    "http": ("scheme",),
    "mutualTLS": (),
    "oauth2": ("flows",),
    "openIdConnect": ("openIdConnectUrl",),
}

Schemes = dict[str, dict[str, Any]]


def schemes_of(providers: Iterable[LoadedProvider]) -> Schemes:
    """The security schemes of all providers, by name. Raises ConfigError for an invalid scheme or a duplicate name.

    All bearer schemes become one, `bearerAuth`. A provider's scheme for another place (`X-API-Key`, a cookie) is only
    mentioned in the description of that one if a bearer scheme of the same provider takes the same token types.
    A provider without schemes is documented as reading the header `Authorization`: an empty list would mean that no
    credential is needed.
    """
    bearers, others, names = Schemes(), Schemes(), set[str]()
    texts: list[str] = []
    for one in providers:
        own = _declared(one)
        for name in own:
            if name in names or name == BEARER:
                raise ConfigError(f"provider {one.name!r}: the security scheme {name!r} already belongs to another provider")
        names |= own.keys()
        mine = {name: scheme for name, scheme in own.items() if _is_bearer(scheme)}
        bearers |= mine
        taken = [scheme.get(TOKEN_TYPES) for scheme in mine.values()]
        for name, scheme in own.items():
            if name in mine:
                texts.append(scheme.get("description", f"A token of the provider `{one.name}`."))
            elif scheme["type"] == "apiKey" and scheme.get(TOKEN_TYPES) in taken:
                texts.append(f"Instead, in the {scheme['in']} `{scheme['name']}`: {scheme.get('description', name)}")
            else:
                others[name] = scheme
    return ({BEARER: _one_bearer(bearers, texts)} if bearers else {}) | others


def fitting(schemes: Schemes, access: Access) -> list[dict[str, list[str]]]:
    """A route's `security`: any one of the schemes whose token types it accepts, or all schemes if none fits."""
    accepted = [name for name, scheme in schemes.items() if _takes(access, scheme.get(TOKEN_TYPES))]
    return [{name: []} for name in accepted or schemes]


def _declared(one: LoadedProvider) -> Schemes:
    schemes = one.security_schemes or {one.name: _default(one.name)}
    if not isinstance(schemes, Mapping):
        raise ConfigError(f"provider {one.name!r}: security_schemes must be a mapping of names to schemes")
    for name, scheme in schemes.items():
        _check(one.name, name, scheme)
    return {name: dict(scheme) for name, scheme in schemes.items()}


def _is_bearer(scheme: Mapping[str, Any]) -> bool:
    return scheme["type"] == "http" and str(scheme["scheme"]).lower() == "bearer"


def _one_bearer(bearers: Schemes, texts: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "http", "scheme": "bearer", "description": "\n".join(f"- {text}" for text in texts)}
    types = [scheme.get(TOKEN_TYPES) for scheme in bearers.values()]
    if None not in types:
        made[TOKEN_TYPES] = sorted({name for several in types for name in several or ()})
    return made


def _takes(access: Access, types: list[str] | None) -> bool:
    return types is None or not access.accepts.isdisjoint(types)


def _default(provider: str) -> dict[str, Any]:
    words = f"A credential of the provider `{provider}`, as the whole value of the header."
    return {"type": "apiKey", "in": "header", "name": "Authorization", "description": words}


def _check(provider: str, name: object, scheme: object) -> None:
    where = f"provider {provider!r}: security_schemes"
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigError(f"{where}: {name!r} is not a valid name for a scheme (letters, digits, '.', '_', '-')")
    if not isinstance(scheme, Mapping) or scheme.get("type") not in _NEEDS:
        raise ConfigError(f"{where}[{name!r}]: its type must be one of {', '.join(_NEEDS)}")
    if missing := [member for member in _NEEDS[scheme["type"]] if member not in scheme]:
        raise ConfigError(f"{where}[{name!r}]: a scheme of type {scheme['type']} needs {missing[0]!r}")
