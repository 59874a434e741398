"""Sign-in without Clerk during development: a local key that signs tokens like Clerk's.

The key is used only if no Clerk setting exists and the environment is not production, and its tokens are accepted only
from this machine. After the choice of the key these tokens are verified exactly like Clerk's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from jwt.algorithms import RSAAlgorithm

from ..jwt.jwk import RSA, from_jwk
from ..jwt.jwks import StaticKeys
from .permissions import pack

ISSUER: Final = "https://development.gatepost.invalid"
KID: Final = "gatepost-development"
FILE: Final = "clerk-development-key.pem"
CATEGORY: Final = "cl_B7d4PD111AAA"
_HEADERS: Final = {
    "session_token": {"cat": CATEGORY},
    "oauth_token": {"typ": "at+jwt"},
    "m2m_token": {"cat": "cl_B7d4PD333AAA"},
}


def signing_key(folder: Path) -> rsa.RSAPrivateKey:
    """Returns the private key in `folder`, created if missing. Raises ValueError if other users could read or replace it."""
    path = folder / FILE
    try:
        return _read(path)
    except FileNotFoundError:
        try:
            _make(path)
        except OSError as error:
            place = f"{folder}: {error.strerror}: make it writable, or choose another data_folder (GATEPOST_DATA_FOLDER)"
            raise ValueError(f"the development key cannot be written to {place}") from None
        return _read(path)


def verification_keys(key: rsa.RSAPrivateKey) -> StaticKeys:
    """Returns the public half, for tokens with the development kid only."""
    return StaticKeys(from_jwk(RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), RSA), kid=KID)


def mint(key: rsa.RSAPrivateKey, claims: dict[str, Any], kind: str = "session_token") -> str:
    """Returns a token (a compact JWS) of the type `kind` with these claims, signed with `key`."""
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": KID, **_HEADERS[kind]})


def machine_claims(
    subject: str, kind: str, *, scopes: Iterable[str], org: str | None, ttl: float, now: float | None = None
) -> dict[str, Any]:
    """Returns the claims of a machine token, of a user's OAuth application or of a machine. `ttl` is in seconds."""
    claims = {name: value for name, value in _common(subject, ttl, now).items() if name != "sid"}
    if kind == "m2m_token":
        return claims | {"scopes": " ".join(scopes)}
    return claims | {"client_id": "client_1", "scope": " ".join(scopes)} | ({"org_id": org} if org is not None else {})


def claims_v2(
    user: str,
    *,
    org: str | None = None,
    role: str | None = None,
    permissions: Iterable[str] = (),
    ttl: float = 3600,
    now: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Returns the claims of a version 2 session token; `more` replaces or adds claims (`sts="pending"`, `fva=[0, -1]` ...).

    `ttl` is in seconds. Raises ValueError for a role or permissions without an organisation.
    """
    claims = _common(user, ttl, now) | {"v": 2}
    permissions = list(permissions)
    if org is None and (role is not None or permissions):
        raise ValueError("a role or a permission needs an organisation: add --org")
    if org is not None:
        features, verbs, masks = pack(permissions)
        claims["o"] = {"id": org, "rol": (role or "member").removeprefix("org:")}
        if permissions:
            claims["fea"] = features
            claims["o"] |= {"per": verbs, "fpm": masks}
    return claims | more


def claims_v1(
    user: str,
    *,
    org: str | None = None,
    role: str | None = None,
    permissions: Iterable[str] = (),
    ttl: float = 3600,
    now: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """As `claims_v2`, in the shape of version 1 tokens."""
    claims = _common(user, ttl, now)
    if org is not None:
        claims |= {"org_id": org, "org_role": role or "org:member", "org_permissions": list(permissions)}
    return claims | more


def _common(user: str, ttl: float, now: float | None) -> dict[str, Any]:
    issued = int(time.time() if now is None else now)
    session, token = f"sess_{secrets.token_hex(12)}", secrets.token_hex(10)
    times = {"iat": issued, "nbf": issued - 10, "exp": issued + int(ttl)}
    return {"iss": ISSUER, "sub": user, "sid": session, "jti": token, **times}


def _read(path: Path) -> rsa.RSAPrivateKey:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"the development key {path.name} cannot be read: {error.strerror}") from None
    about = os.fstat(handle)
    if stat.S_ISDIR(about.st_mode):
        os.close(handle)
        raise ValueError(f"the development key {path.name} is a folder; delete it")
    with open(handle, "rb") as file:
        if not stat.S_ISREG(about.st_mode) or about.st_mode & 0o077 or about.st_uid != os.geteuid():
            raise ValueError(f"the development key {path.name} must be your own file with mode 0600; delete it")
        try:
            key = load_pem_private_key(file.read(65_536), password=None)
        except (ValueError, TypeError):
            key = None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < 2048:
        raise ValueError(f"the development key {path.name} holds no RSA key; delete it for a new one")
    return key


def _make(path: Path) -> None:
    """Write the key to a temporary file and link it into place: one of two workers wins, and both then read the same key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
