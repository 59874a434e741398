"""URLs and origins in Clerk's settings, in the form in which tokens and browsers write them."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from server import checked_origin

from ..jwt.texts import is_safe_url

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def frontend(name: str, publishable_key: str) -> str:
    """Returns the Frontend API's URL. The key is `pk_test_` or `pk_live_` and base64 of `<host>$`, often without padding.

    Raises ValueError that begins with `name`.
    """
    parts = publishable_key.split("_")
    host = ""
    if len(parts) == 3 and parts[0] == "pk" and parts[1] in ("test", "live"):
        encoded = parts[2].rstrip("=")
        try:
            host = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode("ascii")
        except (Base64Error, UnicodeDecodeError):
            host = ""
    instance = host[:-1]
    if not host.endswith("$") or "." not in instance or not _HOST.fullmatch(instance):
        secret = ": this is a secret key" if parts[0] == "sk" else ""
        raise ValueError(f"{name} is not a publishable key{secret}: copy it whole from Clerk's dashboard")
    local = parts[1] == "test" and instance.partition(":")[0] in _LOOPBACK
    return f"{'http' if local else 'https'}://{instance}"


def api(name: str, value: str) -> str:
    """Returns the Backend API's URL without its version. Raises ValueError that begins with `name`."""
    url = _checked(name, value, "https://api.clerk.com").removesuffix("/v1").rstrip("/")
    if "/v1/" in url or url.endswith(".json"):
        raise ValueError(f"{name} must end before /v1: https://api.clerk.com")
    return url


def issuer(name: str, value: str) -> str:
    """Returns an issuer as Clerk writes it into tokens: in lower case, without a default port or a final slash.

    Raises ValueError that begins with `name`.
    """
    url = _checked(name, value, "https://clerk.example.com")
    if "/.well-known" in url or url.endswith(("/jwks", "/jwks.json")):
        raise ValueError(f"{name} is the address of a key set or of its configuration: the issuer ends before /.well-known")
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme])}{parts.path}"


def origin(name: str, value: str) -> str:
    """Returns the origin, as browsers write it. Raises ValueError that begins with `name`, and says which one was meant."""
    try:
        return checked_origin(value)
    except ValueError as error:
        scheme, colon, rest = value.lower().partition("://")
        meant = scheme + colon + rest.partition("/")[0].removesuffix(_DEFAULT_PORTS.get(scheme, "/"))
        try:
            hint = f": write {checked_origin(meant)!r}"
        except ValueError:
            hint = _meant(meant)
        raise ValueError(f"{name}: {error}{hint if hint not in str(error) else ''}") from None


def _meant(text: str) -> str:
    """The end of a sentence on a text that is no origin: what was probably meant; "" if that is not clear."""
    if len(re.split(r"[\s;]+", text.strip("; "))) > 1:
        return ": separate origins with commas"
    with suppress(ValueError):
        return f": write {checked_origin(f'https://{text}')!r}" if "." in text else ""
    return ""


def _checked(name: str, value: str, example: str) -> str:
    """Returns an https URL, or an http URL of this machine, without its final slash. Raises ValueError."""
    if not is_safe_url(value) or "?" in value:
        raise ValueError(f"{name} must be a URL such as {example} (http:// only for this machine)")
    return value.rstrip("/")
