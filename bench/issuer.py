"""Who signs: session tokens of the size and shape of Clerk's, in numbers, and the price of checking one signature."""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER = "https://clerk.example.com"
PARTY = "https://app.example.com"
_HEADER = {"alg": "RS256", "cat": "cl_B7d4PD111AAA", "kid": "ins_2bench", "typ": "JWT"}


def user(number: int) -> str:
    """The id of a user; as long as Clerk's."""
    return f"user_{number:024d}"


def org(number: int) -> str:
    """The id of the organisation that is active for a user: a hundred of them, in turn."""
    return f"org_{number % 100:024d}"


class Issuer:
    """A key pair and its tokens. They hold for an hour."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def token(self, number: int, tenant: str | None = None) -> str:
        """A new token of this user; no two are alike. `tenant`: another active organisation than `org(number)`."""
        claims = _claims(number)
        if tenant is not None:
            claims["o"]["id"] = tenant
        return _signed(self._key, claims)

    def forged(self, number: int) -> str:
        """The same, signed with another key."""
        return _signed(self._other, _claims(number))

    def oauth(self, number: int) -> str:
        """A new OAuth access token (RFC 9068) of this user, as Clerk's OAuth applications get it."""
        claims = {name: value for name, value in _claims(number).items() if name in ("exp", "iat", "iss", "nbf", "sub")}
        claims |= {"client_id": "client_2bench", "scope": "profile email data:read", "jti": f"oat_{secrets.token_hex(16)}", "org_id": org(number)}
        return _signed(self._key, claims, {"alg": "RS256", "kid": _HEADER["kid"], "typ": "at+jwt"})

    def machine(self, number: int) -> str:
        """A new token of one of Clerk's machines."""
        claims = {name: value for name, value in _claims(number).items() if name in ("exp", "iat", "iss", "nbf")}
        claims |= {"jti": secrets.token_hex(16), "scopes": "mch_2bench", "sub": f"mch_{number:024d}"}
        return _signed(self._key, claims, {**_HEADER, "cat": "cl_B7d4PD333AAA"})

    def verify_us(self, repetitions: int = 20, batch: int = 100) -> float:
        """CPU microseconds of one bare verification of an RSA-2048 signature by `cryptography`; the least of many."""
        key, message = self._key.public_key(), self.token(0).rpartition(".")[0].encode()
        signature = self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        scheme, digest = padding.PKCS1v15(), hashes.SHA256()
        best = float("inf")
        for _ in range(repetitions):
            began = time.thread_time()
            for _ in range(batch):
                key.verify(signature, message, scheme, digest)
            best = min(best, (time.thread_time() - began) / batch)
        return best * 1e6


def garbage(number: int) -> str:
    """Unsigned tokens: an empty text, random text, a token cut short, two segments."""
    junk = secrets.token_urlsafe(60)
    return ("abc.def", junk, f"eyJ{junk}.{junk}", f"{junk}.{junk}.{junk}", "null", f"eyJhbGciOiJub25lIn0.{junk}.")[number % 6]


def request(
    path: str, token: str | None = None, number: int | None = None, key: str | None = None, body: bytes = b""
) -> bytes:
    """The bytes of a GET, or of a POST with this body. The bare server reads the user from X-User-Id; all get the same bytes."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: application/json"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if key is not None:
        lines.append(f"X-API-Key: {key}")
    if number is not None:
        lines += [f"X-User-Id: {user(number)}", f"X-Org-Id: {org(number)}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def _claims(number: int) -> dict[str, Any]:
    now = int(time.time()) - 2
    return {
        "azp": PARTY, "exp": now + 3600, "fea": "o:data", "fva": [0, -1], "iat": now, "iss": ISSUER, "jti": secrets.token_hex(10),
        "nbf": now - 10, "o": {"fpm": "3", "id": org(number), "per": "read,manage", "rol": "admin", "slg": f"org-{number % 100}"},
        "pla": "o:pro", "sid": f"sess_{number:024d}", "sts": "active", "sub": user(number), "v": 2,
    }  # fmt: skip


def _signed(key: rsa.RSAPrivateKey, claims: dict[str, Any], header: dict[str, str] = _HEADER) -> str:
    message = ".".join(_segment(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    return f"{message}.{_segment(key.sign(message.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _segment(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
