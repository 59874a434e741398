"""The format of managed keys: `gp_<env>_<id>_<secret><checksum>`.

    gp_live_4Yb0sT9wKq2LmZ7d_…43 characters…0aBc1D

env        `live` for a key made in production, `test` for any other: for people and scanners; the server does not use it
id         16 characters of base62 that identify the key in lists and logs; not secret
secret     43 random characters of base62, more than 256 bits
checksum   CRC32 of everything before it, in 6 characters of base62: detects typos and false positives; not for security

A double click selects the whole key, and it is not valid Base64. A leak scanner searches for PATTERN and then calls `parse`
(or computes the checksum): text that only looks like a key is recognised without a request to the server.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import Final

PREFIX: Final = "gp_"
PATTERN: Final = r"gp_(?:live|test)_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}"
"""The documented regular expression for leak scanners."""

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH = 16, 43, 6
_KEY: Final = re.compile(r"gp_(live|test)_([0-9A-Za-z]{16})_[0-9A-Za-z]{49}\Z")


@dataclass(frozen=True, slots=True)
class Key:
    """A whole key. Its text is shown once and never stored; `repr` does not show it."""

    id: str
    env: str
    text: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        """The SHA-256 that is stored and looked up instead of the key."""
        return digest_of(self.text)


def digest_of(text: str) -> bytes:
    """Returns the SHA-256 of a key. It has 256 random bits, so a slow hash would add no protection, only cost."""
    return hashlib.sha256(text.encode()).digest()


def environment(env: str) -> str:
    """Returns the part `env` of a key for the server's setting `env`: `live` or `test`."""
    return "live" if env == "production" else "test"


def make(env: str, id: str | None = None) -> Key:
    """Returns a new key for the server's `env`; `id` is the id of a key that is rotated."""
    key_id = id if id is not None else _random(_ID_LENGTH)
    text = f"{PREFIX}{environment(env)}_{key_id}_{_random(_SECRET_LENGTH)}"
    return Key(key_id, environment(env), text + checksum(text))


def parse(text: str) -> Key | None:
    """Returns the key in this text; None for another format or a wrong checksum."""
    match = _KEY.match(text)
    if match is None or checksum(text[:-_CHECKSUM_LENGTH]) != text[-_CHECKSUM_LENGTH:]:
        return None
    return Key(match[2], match[1], text)


def checksum(text: str) -> str:
    """Returns the CRC32 of `text` as 6 characters of base62."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        number, rest = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[rest] + digits
    return digits


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
