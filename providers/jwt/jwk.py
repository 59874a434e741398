"""Reads a public key from a JWK or a PEM, refuses a weak or odd one, and binds it to the algorithms it may verify."""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt.algorithms import Algorithm, RSAAlgorithm

from .strict_json import Malformed, read_object

RSA: Final = ("RS256", "RS384", "RS512")
RSA_PSS: Final = ("PS256", "PS384", "PS512")
_BY_CURVE: Final[Mapping[str, tuple[str, ...]]] = {
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA", "Ed25519"),
}
# RFC 9864 2.2: `Ed25519` is `EdDSA` with that curve alone. PyJWT knows the older name; the curve is checked before it is asked.
_LIBRARYS_NAME: Final[Mapping[str, str]] = {"Ed25519": "EdDSA"}
# RFC 7518 6: these members are the private half. A signature by a key whose private half was published proves nothing.
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_MIN_BITS: Final = 2048
_MAX_BITS: Final = 8192
_MIN_EXPONENT: Final = 65537
_MAX_EXPONENT: Final = 2**32
_ARMOUR: Final = re.compile(r"-----(?:BEGIN|END) ([A-Z0-9 ]+)-----")
_PUBLIC_ARMOUR: Final = frozenset({"PUBLIC KEY", "RSA PUBLIC KEY"})


class OddKey(Exception):
    """A key that is not used. The message says why and contains nothing of the key."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key and its verifiers, one per algorithm that it may serve. Two keys are the same if `material` is equal."""

    kid: str | None
    material: tuple[str, ...]
    verifiers: Mapping[str, tuple[Algorithm, Any]] = field(repr=False)

    def verify(self, alg: str, signing_input: bytes, signature: bytes) -> bool:
        """Whether `signature` is one of `signing_input` by this key under `alg`. False for an `alg` that it may not serve."""
        verifier = self.verifiers.get(alg)
        return verifier is not None and bool(verifier[0].verify(signing_input, verifier[1], signature))


def from_jwk(jwk: object, algorithms: Collection[str]) -> Key:
    """Returns the key of one member of a key set (RFC 7517 4), for those of `algorithms` that its type allows.

    A member's own `alg` limits it to that one. Raises OddKey for a member that must be skipped.
    """
    if not isinstance(jwk, dict):
        raise OddKey("it is not an object")
    _check_purpose(jwk)
    allowed = [name for name in _algorithms_of(jwk) if name in algorithms]
    if "alg" in jwk:
        allowed = [name for name in allowed if name == jwk["alg"]]
    if not allowed:
        raise OddKey("its type or its alg is not one that is allowed here")
    public = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
    if not all(isinstance(value, str) for value in public.values()):
        raise OddKey("it is malformed")
    verifiers = {name: _verifier(public, name) for name in allowed}
    _check_strength(next(iter(verifiers.values()))[1])
    return Key(jwk.get("kid"), (*allowed, *(f"{name}={public[name]}" for name in sorted(public))), verifiers)


def from_pem(text: str, algorithms: Collection[str] = RSA) -> Key:
    """Returns the RSA key in a PEM. Accepts what environment variables do to it: `\\n` escapes, no newlines, no armour lines.

    Raises ValueError, whose message never contains the text, for anything but one public RSA key of 2048 to 8192 bits.
    """
    text = text.replace("\\r", "").replace("\\n", "\n").strip()
    labels = set(_ARMOUR.findall(text))
    if labels - _PUBLIC_ARMOUR or len(_ARMOUR.findall(text)) > 2:
        raise ValueError("must be one public key in PEM form (BEGIN PUBLIC KEY), and nothing else")
    try:
        der = a2b_base64("".join(_ARMOUR.sub("", text).split()), strict_mode=True)
        key = load_der_public_key(der)
    except (ValueError, Base64Error, UnsupportedAlgorithm):
        raise ValueError("must be a public key in PEM form") from None
    if not isinstance(key, RSAPublicKey):
        raise ValueError("must be an RSA key")
    try:
        return from_jwk(RSAAlgorithm.to_jwk(key, as_dict=True) | {"key_ops": ["verify"]}, algorithms)
    except OddKey as error:
        raise ValueError(f"must be an RSA key of {_MIN_BITS} to {_MAX_BITS} bits ({error})") from None


class ReadSet(NamedTuple):
    """The usable keys of a key set by kid, the kids of the others, and a log line about each of those."""

    keys: dict[str, Key]
    unusable: set[str]
    lines: set[str]


def read_set(raw: bytes, algorithms: Collection[str]) -> ReadSet:
    """Returns what a key set's JSON contains (RFC 7517 5). Raises Malformed if it is not a key set.

    If usable members with different keys share a kid, none of them is used: the set does not say which one is meant.
    """
    members = read_object(raw, "key set").get("keys")
    if not isinstance(members, list):
        raise Malformed("the key set has no list of keys")
    keys: dict[str, Key] = {}
    odd: set[str] = set()
    twice: set[str] = set()
    unusable: set[str] = set()
    for position, member in enumerate(members):
        try:
            key = from_jwk(member, algorithms)
            if key.kid is None:
                raise OddKey("it has no kid")
            if key.kid in keys and keys[key.kid].material != key.material:
                twice.add(key.kid)
                raise OddKey("another key has the same kid, and neither is used")
            keys[key.kid] = key
        except OddKey as error:
            kid = member.get("kid") if isinstance(member, dict) else None
            odd.add(f"key {position} ({repr(kid[:64]) if isinstance(kid, str) else 'no kid'}) is not used: {error}")
            unusable.update([kid] if isinstance(kid, str) else [])
    usable = {kid: key for kid, key in keys.items() if kid not in twice}
    return ReadSet(usable, unusable - usable.keys(), odd)


def _check_purpose(jwk: Mapping[str, Any]) -> None:
    kid, operations = jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if "kid" in jwk and not (isinstance(kid, str) and 0 < len(kid) <= 255):
        raise OddKey("its kid is not a string of 1 to 255 characters")
    if jwk.get("kty") == "oct":
        raise OddKey("it is symmetric")
    if _PRIVATE & jwk.keys():
        raise OddKey("its private half was published")
    if jwk.get("use", "sig") != "sig":
        raise OddKey("its use is not sig")
    if not isinstance(operations, list) or "verify" not in operations:
        raise OddKey("its key_ops do not hold verify")


def _algorithms_of(jwk: Mapping[str, Any]) -> tuple[str, ...]:
    kty, curve = jwk.get("kty"), jwk.get("crv")
    if kty == "RSA":
        return RSA + RSA_PSS
    if kty in ("EC", "OKP") and isinstance(curve, str) and (curve == "Ed25519") == (kty == "OKP"):
        return _BY_CURVE.get(curve, ())
    return ()


def _verifier(public: dict[str, Any], algorithm: str) -> tuple[Algorithm, Any]:
    try:
        made = jwt.PyJWK(public, algorithm=_LIBRARYS_NAME.get(algorithm, algorithm))
    except Exception:  # one odd member must never spoil the set, whatever the library raises
        # Not chained: the library's messages quote the member.
        raise OddKey("it is malformed") from None
    return made.Algorithm, made.key


def _check_strength(key: Any) -> None:
    if not isinstance(key, RSAPublicKey):
        return
    if not _MIN_BITS <= key.key_size <= _MAX_BITS:
        raise OddKey(f"it has {key.key_size} bits, not {_MIN_BITS} to {_MAX_BITS}")
    exponent = key.public_numbers().e
    if exponent % 2 == 0 or not _MIN_EXPONENT <= exponent <= _MAX_EXPONENT:
        raise OddKey("its exponent is not an odd number from 65537 to 2**32")
