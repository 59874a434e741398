"""Reads and verifies a DPoP proof: one JWT, signed by the key that its own header contains (RFC 9449 4.2, 4.3)."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from server import BoundedDict

from ..jwt import jws
from ..jwt.jwk import Key, OddKey, from_jwk
from ..jwt.strict_json import Malformed

MAX_BYTES: Final = 8 * 1024
_LONGEST_JTI: Final = 255
_REMEMBERED: Final = 1000
_LONGEST_REMEMBERED: Final = 2048
_HASHED: Final[Mapping[str, tuple[str, ...]]] = {
    "EC": ("crv", "kty", "x", "y"),
    "OKP": ("crv", "kty", "x"),
    "RSA": ("e", "kty", "n"),
}


class InvalidProof(Exception):
    """The proof is refused. The message is logged, so it names the rule and never a value."""


class Proof(NamedTuple):
    """The claims of a proof whose signature is valid. None of them is compared with the request yet."""

    jti: str
    htm: str
    htu: str
    issued: float
    ath: str
    nonce: str | None
    not_before: float | None
    expires: float | None


class _Signer(NamedTuple):
    alg: str
    key: Key
    thumbprint: str


class ProofReader:
    """Verifies proofs, and caches the headers of valid ones: a client sends the same header with all its proofs."""

    def __init__(self, algorithms: Collection[str]) -> None:
        """`algorithms` are the allowed `alg` values; `none` and HMAC raise ValueError."""
        self._headers = jws.HeaderReader(algorithms, types=("dpop+jwt",))
        self._known: BoundedDict[str, _Signer] = BoundedDict(_REMEMBERED)

    def read(self, text: str, thumbprint: str) -> Proof:
        """Returns the proof of the key with this thumbprint (RFC 7638). Raises InvalidProof."""
        segments = jws.split(text) if len(text) <= MAX_BYTES else None
        if segments is None:
            raise InvalidProof("the proof is not one compact JWT of at most 8 KiB")
        try:
            known = self._known.get(segments.header)
            # The thumbprint is compared before anything is done with the key: an unknown key is not worth an import.
            signer = known if known is not None else self._signer(segments.header, thumbprint)
            if not hmac.compare_digest(signer.thumbprint, thumbprint):
                raise InvalidProof("the token is bound to another key")
            signed = f"{segments.header}.{segments.payload}".encode()
            if not signer.key.verify(signer.alg, signed, jws.decode(segments.signature)):
                raise InvalidProof("bad signature")
            proof = _proof(jws.claims(jws.decode(segments.payload)))
        except (Malformed, OddKey) as error:
            raise InvalidProof(str(error)) from None
        if known is None and len(segments.header) <= _LONGEST_REMEMBERED:
            self._known.put(segments.header, signer)
        return proof

    def _signer(self, segment: str, thumbprint: str) -> _Signer:
        header = self._headers.read(segment)
        jwk = header.members.get("jwk")
        if not isinstance(jwk, dict):
            raise InvalidProof("jwk is not an object")
        own = thumbprint_of(jwk)
        if not hmac.compare_digest(own, thumbprint):
            raise InvalidProof("the token is bound to another key")
        return _Signer(header.alg, from_jwk(jwk, (header.alg,)), own)


def thumbprint_of(jwk: Mapping[str, Any]) -> str:
    """Returns the SHA-256 thumbprint of a public key (RFC 7638 3) in base64url. Raises InvalidProof."""
    names = _HASHED.get(kty) if isinstance(kty := jwk.get("kty"), str) else None
    if names is None or not all(isinstance(jwk.get(name), str) and jwk[name].isascii() for name in names):
        raise InvalidProof("jwk is not a public key")
    canonical = json.dumps({name: jwk[name] for name in names}, separators=(",", ":"))
    return base64url_of(hashlib.sha256(canonical.encode()).digest())


def base64url_of(raw: bytes) -> str:
    """Returns the bytes in base64url without padding."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _proof(claims: Mapping[str, Any]) -> Proof:
    jti, htm, htu, ath = (claims.get(name) for name in ("jti", "htm", "htu", "ath"))
    if not isinstance(jti, str) or not 0 < len(jti) <= _LONGEST_JTI:
        raise InvalidProof("jti is not a string of 1 to 255 characters")
    if not isinstance(htm, str) or not isinstance(htu, str) or not isinstance(ath, str):
        raise InvalidProof("htm, htu or ath is not a string")
    issued, nonce = jws.numeric_date(claims, "iat"), claims.get("nonce")
    if issued is None:
        raise InvalidProof("iat is missing")
    if "nonce" in claims and not isinstance(nonce, str):
        raise InvalidProof("nonce is not a string")
    return Proof(jti, htm, htu, issued, ath, nonce, jws.numeric_date(claims, "nbf"), jws.numeric_date(claims, "exp"))
