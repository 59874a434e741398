"""DPoP proofs (RFC 9449) that joserfc makes: nothing of ours has a part in them, and every member can be wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from .oidc import Issuer, key, sign, without
from .tokens import b64

SECRET = "canary-of-the-nonces-of-thirty-two-characters"


def ath_of(token: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()


class Holder:
    """A client that holds a key. `proof` makes a valid proof, unless its arguments say otherwise (DROP takes a member away)."""

    def __init__(self, alg: str = "ES256", name: str = "holder") -> None:
        self.alg = alg
        self.key = key("EdDSA" if alg == "Ed25519" else alg, name)
        self.jwk: dict[str, Any] = self.key.as_dict(private=False)
        self.jwk.pop("kid", None)

    @property
    def jkt(self) -> str:
        return str(self.key.thumbprint())

    def token(self, issuer: Issuer, **members: Any) -> str:
        """A token of `issuer` that is bound to this key."""
        return issuer.token(**{"cnf": {"jkt": self.jkt}, **members})

    def proof(
        self, token: str, method: str, url: str, head: Mapping[str, Any] | None = None, signer: Any = None, **members: Any
    ) -> str:
        usual = {"jti": secrets.token_urlsafe(16), "htm": method, "htu": url, "iat": int(time.time()), "ath": ath_of(token)}
        header = without({"typ": "dpop+jwt", "alg": self.alg, "jwk": self.jwk, **(head or {})})
        payload = json.dumps(without({**usual, **members}))
        if isinstance(header.get("jwk", {}), dict) and "crit" not in header:
            return sign(header, payload, signer or self.key)
        message = f"{b64(json.dumps(header).encode())}.{b64(payload.encode())}"  # joserfc signs no such header
        r, s = decode_dss_signature(self.key.private_key.sign(message.encode(), ECDSA(SHA256())))
        return f"{message}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def headers(self, token: str, method: str, url: str, **members: Any) -> dict[str, str]:
        return {"Authorization": f"DPoP {token}", "DPoP": self.proof(token, method, url, **members)}
