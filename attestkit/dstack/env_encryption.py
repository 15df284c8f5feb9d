"""Encrypted environments: made as the dstack SDKs make them, opened as the guest opens them.

X25519 with a key pair for this one message, then AES-256-GCM under the shared bytes as they are.
The file is the message's public key (32 bytes), the IV (12), the ciphertext, and the tag (16).
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import Final

from attestkit._crypto.aes_gcm import IV_SIZE, aes_gcm_decrypt, aes_gcm_encrypt
from attestkit._crypto.ecdsa import k256_recover
from attestkit._crypto.ed25519 import x25519, x25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.zeroize import wipe
from attestkit._formats.strict_json import check_depth
from attestkit.errors import FormatError, SignatureError, UsageError

__all__ = [
    "decrypt_env_vars",
    "encrypt_env_vars",
    "open_sealed",
    "seal",
    "verify_env_encrypt_public_key",
    "verify_env_encrypt_public_key_legacy",
]

_PUBLIC_KEY_SIZE: Final = 32
_HEAD_SIZE: Final = _PUBLIC_KEY_SIZE + IV_SIZE
# Bytes of the whole: a file of the host's. Values have 1 MiB in all, but JSON may write six bytes
# for one, and what is not allowed is left out and not counted.
_LARGEST: Final = 16 << 20
_MAX_ITEMS: Final = 1024
_MAX_NAME: Final = 255
_MAX_VALUE: Final = 131_072
_MAX_TOTAL: Final = 1_048_576
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SIGNED_TAG: Final = b"dstack-env-encrypt-pubkey:"
_MAX_SKEW_SECONDS: Final = 60


def encrypt_env_vars(
    variables: Iterable[tuple[str, str]],
    public_key: str,
    *,
    ephemeral_secret: bytes | None = None,
    iv: bytes | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> str:
    """Return the encrypted environment in hex, as `encrypt_env_vars` of the dstack SDKs.

    Args:
        variables: names and values, in order.
        public_key: the application's X25519 public key, 64 hex digits; `0x` may lead.
        ephemeral_secret: 32 bytes for tests; the same ones twice give the plaintext away.
        iv: 12 bytes for tests.
        random: returns that many random bytes, for what is not given.

    Raises:
        UsageError: the public key is malformed, or a text cannot be written in UTF-8.
    """
    items = [{"key": name, "value": value} for name, value in variables]
    try:
        text = json.dumps({"env": items}, separators=(",", ":"), ensure_ascii=False).encode()
        remote = bytes.fromhex(public_key.removeprefix("0x"))
    except TypeError:
        problem = "a name or a value is not text"
    except UnicodeEncodeError:
        problem = "a name or a value is not Unicode text: it has half a surrogate pair"
    except ValueError:
        problem = "the public key is not hex"
    else:
        secret = random(32) if ephemeral_secret is None else ephemeral_secret
        return seal(text, remote, secret, random(IV_SIZE) if iv is None else iv).hex()
    raise UsageError(problem)  # here, because those errors carry the plaintext


def decrypt_env_vars(secret: bytes, sealed: bytes, allowed: Collection[str]) -> dict[str, str]:
    """Return the variables of an encrypted environment, in order; a later one replaces an earlier.

    Args:
        secret: the application's X25519 secret, 32 bytes; empty for an app without one.
        sealed: the encrypted environment, at least 44 bytes; empty for none.
        allowed: the names that the application accepts; others are left out, unchecked.

    Raises:
        FormatError: the plaintext is not of the right form, or over a limit: 1024 items, names of
            255 bytes that are identifiers, values of 131072 bytes, 1048576 bytes in all.
        VerificationError: the ciphertext was altered or is for another key.
        UsageError: the secret is not 32 bytes.
    """
    if not secret or not sealed:
        return {}
    names = frozenset(allowed)
    found: dict[str, str] = {}
    total = 0
    for index, item in enumerate(_items(open_sealed(secret, sealed))):
        name, value = _pair(index, item)
        if name not in names:
            continue
        total += _checked_size(index, name, value)
        if total > _MAX_TOTAL:
            raise _error(index, f"over {_MAX_TOTAL} bytes in all")
        found[name] = value
    return found


def seal(plaintext: bytes, public_key: bytes, ephemeral_secret: bytes, iv: bytes) -> bytes:
    """Return `plaintext` encrypted to an X25519 public key (32 bytes): 60 bytes longer.

    Args:
        plaintext: anything.
        public_key: the receiver's, 32 bytes.
        ephemeral_secret: 32 fresh random bytes.
        iv: 12 fresh random bytes.

    Raises:
        UsageError: a size is wrong, or the public key is one of the few that share nothing.
    """
    key = x25519(ephemeral_secret, public_key)
    try:
        return x25519_public_key(ephemeral_secret) + iv + aes_gcm_encrypt(key, iv, plaintext)
    finally:
        wipe(key)


def open_sealed(secret: bytes, sealed: bytes) -> bytes:
    """Return the plaintext of what `seal` made.

    Raises:
        FormatError: under 44 bytes, over 16 MiB, or the public key in it shares nothing.
        VerificationError: it was altered, or is for another key.
        UsageError: the secret is not 32 bytes.
    """
    if len(secret) != 32:
        raise UsageError(f"an X25519 secret is 32 bytes, not {len(secret)}")
    if len(sealed) < _HEAD_SIZE:
        raise FormatError("the encrypted environment is too short", offset=len(sealed))
    if len(sealed) > _LARGEST:
        raise FormatError(f"the encrypted environment has {len(sealed)} bytes, over {_LARGEST}")
    try:
        key = x25519(secret, sealed[:_PUBLIC_KEY_SIZE])
    except UsageError as error:
        raise FormatError(str(error), offset=0) from error
    try:
        return aes_gcm_decrypt(key, sealed[_PUBLIC_KEY_SIZE:_HEAD_SIZE], sealed[_HEAD_SIZE:])
    finally:
        wipe(key)


def verify_env_encrypt_public_key(
    public_key: bytes,
    signature: bytes,
    app_id: str,
    timestamp: int,
    *,
    now: int,
    max_age_seconds: int = 300,
) -> str | None:
    """Return who signed an application's encryption key, as `0x` and 66 hex digits, or None.

    The answer proves nothing until it is compared with the key of the KMS that one trusts.

    Args:
        public_key: the application's X25519 public key, 32 bytes.
        signature: 65 bytes over key, application and time (`signature_v1` of the KMS).
        app_id: in hex; `0x` may lead.
        timestamp: seconds since 1970, from the KMS.
        now: seconds since 1970.
        max_age_seconds: how old the timestamp may be, inclusive; it may be 60 seconds ahead.
    """
    if not 0 <= timestamp < 1 << 64:
        return None
    if now - timestamp > max_age_seconds or timestamp - now > _MAX_SKEW_SECONDS:
        return None
    return _signer(public_key, signature, app_id, timestamp.to_bytes(8, "big"))


def verify_env_encrypt_public_key_legacy(
    public_key: bytes, signature: bytes, app_id: str
) -> str | None:
    """Return who signed an application's encryption key without a time, or None.

    Such a signature stays good for ever and can be replayed: use it only for a KMS that gives no
    other. The arguments are those of `verify_env_encrypt_public_key`.
    """
    return _signer(public_key, signature, app_id, b"")


def _signer(public_key: bytes, signature: bytes, app_id: str, time: bytes) -> str | None:
    if len(public_key) != _PUBLIC_KEY_SIZE:  # else its border with the id could be shifted
        return None
    try:
        app = bytes.fromhex(app_id.removeprefix("0x"))
        digest = keccak256(_SIGNED_TAG + app + time + public_key)
        return "0x" + k256_recover(signature, digest).hex()
    except (ValueError, SignatureError):
        return None


def _items(plaintext: bytes) -> list[object]:
    """Return the list `env`. The errors of json carry the plaintext, so they end here."""
    try:
        check_depth(plaintext)
        found = json.loads(plaintext.decode())
    except (ValueError, RecursionError):
        found = None
    items = found.get("env") if isinstance(found, dict) else None
    if not isinstance(items, list):
        raise FormatError("the environment is not JSON with a list called env")
    if len(items) > _MAX_ITEMS:
        raise FormatError(f"the environment has {len(items)} items, over {_MAX_ITEMS}")
    return items


def _pair(index: int, item: object) -> tuple[str, str]:
    if isinstance(item, dict):
        name, value = item.get("key"), item.get("value")
        if isinstance(name, str) and isinstance(value, str):
            return name, value
    raise _error(index, "not an object with the texts key and value")


def _checked_size(index: int, name: str, value: str) -> int:
    """Return the bytes of name and value, which must keep the limits."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise _error(index, "the name is not an identifier of at most 255 bytes")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0:  # raised here, because that error carries the value
        raise _error(index, "the value has half a surrogate pair")
    if size > _MAX_VALUE:
        raise _error(index, f"the value is over {_MAX_VALUE} bytes")
    return len(name) + size


def _error(index: int, reason: str) -> FormatError:
    return FormatError(f"variable {index} of the environment: {reason}")
