"""Signatures that are not signatures: PKCS#1 v1.5 encodings that a careless verifier takes, and numbers that are no point.

Project Wycheproof's file of such encodings cannot be used as it is, for its messages are no claims. So its classes are made anew,
over the test's own message, with a key whose private half the test has: each is the very `EM ** d mod n` of a wrong EM.
"""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

# DigestInfo (RFC 8017 9.2, note 1), in its parts: AlgorithmIdentifier's OID and parameters, then the digest.
OID, NULL = bytes.fromhex("0609608648016503040201"), b"\x05\x00"
OTHER_HASHES = {
    "md2": "06082a864886f70d0202", "md5": "06082a864886f70d0205", "sha1": "06052b0e03021a", "sha224": "0609608648016503040204",
    "sha384": "0609608648016503040202", "sha512": "0609608648016503040203", "sha512-256": "0609608648016503040206", "sha3-256": "0609608648016503040208",
    "ripemd": "06052b24030201", "rsa": "06092a864886f70d010101", "sha256WithRSA": "06092a864886f70d01010b", "nothing": "0600", "short": "060860864801650304020100"[:20],
}  # fmt: skip


def tlv(tag: int, content: bytes, length: bytes | None = None) -> bytes:
    """One DER element; `length` in another way than DER's."""
    assert length is not None or len(content) < 128
    return bytes([tag]) + (bytes([len(content)]) if length is None else length) + content


def info(oid: bytes = OID, parameters: bytes = NULL, digest: bytes = b"") -> bytes:
    return tlv(0x30, tlv(0x30, oid + parameters) + tlv(0x04, digest))


def padded(content: bytes, size: int) -> bytes:
    """EMSA-PKCS1-v1_5 (RFC 8017 9.2) around any content."""
    return b"\x00\x01" + b"\xff" * (size - 3 - len(content)) + b"\x00" + content


def encodings(message: bytes, size: int) -> dict[str, bytes]:
    """Encoded messages of `size` bytes that look like the right one, for SHA-256; not one of them is it."""
    digest = hashlib.sha256(message).digest()
    good = info(digest=digest)
    right = padded(good, size)
    made: dict[str, bytes] = {}

    def add(name: str, content: bytes) -> None:
        made[name] = padded(content, size)

    for name, oid in OTHER_HASHES.items():
        add(f"the name of {name}", info(bytes.fromhex(oid), digest=digest))
    for name in ("md5", "sha1", "sha224", "sha384", "sha512"):
        add(f"really {name}", info(bytes.fromhex(OTHER_HASHES[name]), digest=hashlib.new(name, message, usedforsecurity=False).digest()))
    # Parameters.
    odd = {"no": b"", "two": NULL * 2, "a long length of": b"\x05\x81\x00", "a longer length of": b"\x05\x82\x00\x00", "a filled": b"\x05\x01\x00", "an integer for": b"\x02\x01\x00",
           "a text for": b"\x04\x00", "a sequence for": b"\x30\x00", "true for": b"\x01\x01\xff", "an end for": b"\x00\x00", "garbage after": NULL + b"\xde\xad", "a sequence after": NULL + b"\x30\x00",
           "another object for": OID, "a context tag for": b"\x80\x00"}  # fmt: skip
    for name, parameters in odd.items():
        add(f"{name} NULL", info(parameters=parameters, digest=digest))
    for extra in (b"\x00", b"\x00" * 8, b"\x05\x00", b"\x30\x00", b"\xff" * 20):
        hexed = extra.hex()
        add(f"{hexed} in the sequence", tlv(0x30, tlv(0x30, OID + NULL) + tlv(0x04, digest) + extra))
        add(f"{hexed} before the algorithm", tlv(0x30, extra + tlv(0x30, OID + NULL) + tlv(0x04, digest)))
        add(f"{hexed} between", tlv(0x30, tlv(0x30, OID + NULL) + extra + tlv(0x04, digest)))
        add(f"{hexed} behind the sequence", good + extra)
        add(f"{hexed} before the sequence", extra + good)
        add(f"{hexed} in the digest", info(digest=digest + extra))
        # Bleichenbacher's of 2006: the rest of the block is whatever makes a cube.
        made[f"few ff, and {hexed} and zeros behind"] = (b"\x00\x01" + b"\xff" * 8 + b"\x00" + good + extra).ljust(size, b"\x00")
        made[f"few ff, and {hexed} and noise behind"] = (b"\x00\x01" + b"\xff" * 8 + b"\x00" + good + extra).ljust(size, b"\x5a")
    # Lengths that BER allows, and wrong ones.
    for width in (1, 2, 3, 8):
        long = {len(part): bytes([0x80 + width]) + len(part).to_bytes(width, "big") for part in (OID[2:], OID + NULL, digest, good[2:])}
        add(f"{width} bytes of length of the whole", tlv(0x30, good[2:], long[len(good) - 2]))
        add(f"{width} bytes of length of the algorithm", tlv(0x30, tlv(0x30, OID + NULL, long[13]) + tlv(0x04, digest)))
        add(f"{width} bytes of length of the name", info(tlv(0x06, OID[2:], long[9]), digest=digest))
        add(f"{width} bytes of length of the digest", tlv(0x30, tlv(0x30, OID + NULL) + tlv(0x04, digest, long[32])))
    add("no definite length", b"\x30\x80" + good[2:] + b"\x00\x00")
    add("no definite length of the algorithm", tlv(0x30, b"\x30\x80" + OID + NULL + b"\x00\x00" + tlv(0x04, digest)))
    add("a digest in pieces", tlv(0x30, tlv(0x30, OID + NULL) + b"\x24\x80" + tlv(0x04, digest[:16]) + tlv(0x04, digest[16:]) + b"\x00\x00"))
    for by in (-1, 1, 20):
        add(f"the whole longer by {by}", tlv(0x30, good[2:], bytes([len(good) - 2 + by])))
        add(f"the digest longer by {by}", tlv(0x30, tlv(0x30, OID + NULL) + tlv(0x04, digest, bytes([32 + by]))))
        add(f"the name longer by {by}", info(tlv(0x06, OID[2:], bytes([9 + by])), digest=digest))
    for tag in (0x00, 0x03, 0x0C, 0x24, 0x31, 0x70, 0xA0):
        add(f"tag {tag:02x} for the whole", bytes([tag]) + good[1:])
        add(f"tag {tag:02x} for the digest", tlv(0x30, tlv(0x30, OID + NULL) + tlv(tag, digest)))
    # The digest.
    for name, other in {"none": b"", "zeros": bytes(32), "backwards": digest[::-1], "cut": digest[:-1], "cut in front": digest[1:], "hexadecimal": digest.hex().encode(),
                        "of nothing": hashlib.sha256(b"").digest(), "of itself": hashlib.sha256(digest).digest(), "the last bit": digest[:-1] + bytes([digest[-1] ^ 1])}.items():  # fmt: skip
        add(f"digest: {name}", info(digest=other))
    add("the digest bare", digest)
    add("twice", good + good)
    add("nothing at all", b"")
    # The padding.
    for first in (1, 0x7F, 0xFF):
        made[f"begins with {first:02x}"] = bytes([first]) + right[1:]
    for kind in (0x00, 0x02, 0x03, 0x81, 0xFF):
        made[f"block type {kind:02x}"] = b"\x00" + bytes([kind]) + right[2:]
    made["block type 2, with chance"] = b"\x00\x02" + hashlib.shake_256(b"x").digest(size - 3 - len(good)).replace(b"\x00", b"\x01") + b"\x00" + good
    made["block type 0"] = good.rjust(size, b"\x00")
    pad = size - 3 - len(good)
    for at in (0, 1, 7, 8, 9, 50, pad // 2, pad - 9, pad - 2, pad - 1):
        for value in (0x00, 0x01, 0xFE):
            made[f"{value:02x} at {at} of the padding"] = right[: 2 + at] + bytes([value]) + right[3 + at :]
    made["no end of the padding"] = b"\x00\x01" + b"\xff" * (pad + 1) + good
    made["another end of the padding"] = b"\x00\x01" + b"\xff" * pad + b"\x01" + good
    made["two ends of the padding"] = b"\x00\x01" + b"\xff" * (pad - 1) + b"\x00\x00" + good
    for few in range(9):
        made[f"{few} ff"] = (b"\x00\x01" + b"\xff" * few + b"\x00" + good).ljust(size, b"\x00")
    made["moved to the left"], made["moved to the right"] = right[1:] + b"\x00", b"\x00" + right[:-1]
    return {name: em for name, em in made.items() if em != right}


def signature_of(em: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """What raises to `em`, whatever `em` is."""
    numbers = key.private_numbers()
    n = numbers.public_numbers.n
    return pow(int.from_bytes(em, "big") % n, numbers.d, n).to_bytes(len(em), "big")


def odd_numbers(signature: bytes, key: rsa.RSAPrivateKey) -> dict[str, bytes]:
    """Signatures that are numbers of another kind, or the right one written in another way."""
    n, size, s = key.public_key().public_numbers().n, len(signature), int.from_bytes(signature, "big")

    def number(value: int, length: int = size) -> bytes:
        return value.to_bytes(length, "big")

    made = {name: number(value) for name, value in {"0": 0, "1": 1, "2": 2, "n-1": n - 1, "n": n, "n+1": n + 1, "n-s": n - s, "the largest": 256**size - 1}.items() if value < 256**size}
    made |= {"s+n": number(s + n, size + 1), "a zero in front": b"\x00" + signature, "a zero behind": signature + b"\x00", "backwards": signature[::-1], "half": signature[: size // 2],
             "cut": signature[:-1], "cut in front": signature[1:], "twice": signature * 2, "one byte": b"\x01", "n as text": str(n).encode(), "DER": b"\x04\x82\x01\x00" + signature}  # fmt: skip
    return made | ({"s+n in its size": number(s + n)} if s + n < 256**size else {})


def no_points(order: int, prime: int, size: int, good: bytes) -> dict[str, bytes]:
    """ECDSA signatures r || s (RFC 7518 3.4) that no key makes, and the good one written in other ways."""
    values: dict[str, int] = {"0": 0, "1": 1, "n-1": order - 1, "n": order, "n+1": order + 1, "p": prime, "p-n": prime - order, "the largest": 256**size - 1}
    made: dict[str, Any] = {f"r={r}, s={s}": a.to_bytes(size, "big") + b.to_bytes(size, "big") for r, a in values.items() for s, b in values.items()}
    r, s = int.from_bytes(good[:size], "big"), int.from_bytes(good[size:], "big")
    for name, a, b in (("s and r", s, r), ("r, 0", r, 0), ("0, s", 0, s), ("r, n", r, order), ("r+1", r + 1, s), ("r, s+1", r, s + 1), ("n-r", order - r, s)):
        made[name] = a.to_bytes(size, "big") + b.to_bytes(size, "big")
    made |= {f"zeros of length {length}": bytes(length) for length in (1, size, 2 * size - 1, 2 * size + 1, 4 * size)}
    wide = r.to_bytes(size + 1, "big") + s.to_bytes(size + 1, "big")
    der = tlv(0x30, tlv(0x02, b"\x00" + good[:size]) + tlv(0x02, b"\x00" + good[size:]))
    return made | {"wide": wide, "DER": der, "DER of zeros": bytes.fromhex("3006020100020100"), "a byte more": good + b"\x00", "a byte less": good[:-1], "a byte in front": b"\x00" + good}
