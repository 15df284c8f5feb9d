"""Encryption of environment variables, compatible with the dstack SDKs and guest.

X25519 with an ephemeral key pair, then AES-256-GCM with the shared secret as the key, without a
key derivation. Layout: ephemeral public key (32 bytes), IV (12), ciphertext, tag (16).
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Final

from attestkit._argument_checks import require_size
from attestkit._crypto.aead import IV_SIZE, aes_gcm_decrypt, aes_gcm_encrypt
from attestkit._crypto.ecdsa import k256_recover
from attestkit._crypto.ed25519 import x25519, x25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.zeroize import wipe
from attestkit._formats.strict_json import check_depth
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError, SignatureError, UsageError

_PUBLIC_KEY_SIZE: Final = 32
_APP_ID_SIZE: Final = 20
_HEAD_SIZE: Final = _PUBLIC_KEY_SIZE + IV_SIZE
# Bytes of the encrypted environment, a file of the host. Values are limited to 1 MiB in all, but
# JSON may need six bytes for one, and variables that are not allowed do not count.
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
        variables: Names and values, in order. The limits of `decrypt_env_vars` are not checked.
        public_key: X25519 public key of the application, 64 hex digits with or without `0x`.
        ephemeral_secret: 32 bytes, for tests only; reuse reveals the plaintext.
        iv: 12 bytes, for tests only.
        random: Function that returns the given number of random bytes.

    Raises:
        UsageError: If the public key is malformed or has low order, a name or value is not Unicode
            text, or `ephemeral_secret` or `iv` has another size.
    """
    text = write_variables(variables)
    try:
        remote = bytes.fromhex(public_key.removeprefix("0x"))
    except ValueError:
        raise UsageError("public key: must be 64 hex digits", reason="encoding") from None
    secret = random(32) if ephemeral_secret is None else ephemeral_secret
    return seal(text, remote, secret, random(IV_SIZE) if iv is None else iv).hex()


def decrypt_env_vars(secret: bytes, sealed: bytes, allowed: Collection[str]) -> dict[str, str]:
    """Return the variables of an encrypted environment, in order; the last of duplicates wins.

    Args:
        secret: X25519 secret key of the application, 32 bytes. If it is empty (the application
            has no key), the result is empty.
        sealed: Encrypted environment, at least 44 bytes. If it is empty, the result is empty.
        allowed: Names that the application accepts; other variables are ignored, unchecked.

    Raises:
        FormatError: As `open_sealed`, or if the plaintext is malformed, a name is not an
            identifier, or a limit is exceeded: 1024 variables, 255 bytes per name, 131072 bytes per
            value, 1048576 bytes in all.
        VerificationError: If the ciphertext was altered, or encrypted to a different key.
        UsageError: If the secret is neither empty nor 32 bytes.
    """
    if not secret or not sealed:
        return {}
    return read_variables(open_sealed(secret, sealed), allowed)


def read_variables(plaintext: bytes, allowed: Collection[str] | None) -> dict[str, str]:
    """Return the variables of a decrypted environment, in order; the last of duplicates wins.

    Args:
        plaintext: JSON text.
        allowed: Names that the application accepts; other variables are ignored, unchecked. None
            accepts all names.

    Raises:
        FormatError: If the text is malformed, a name is not an identifier, or a limit of
            `decrypt_env_vars` is exceeded.
    """
    names = None if allowed is None else frozenset(allowed)
    found: dict[str, str] = {}
    total = 0
    for index, item in enumerate(_items(plaintext)):
        name, value = _pair(index, item)
        if names is not None and name not in names:
            continue
        total += _checked_size(index, name, value)
        if total > _MAX_TOTAL:
            raise _error(index, "too_large", f"names and values are over {_MAX_TOTAL} bytes in all")
        found[name] = value
    return found


def write_variables(variables: Iterable[tuple[str, str]]) -> bytes:
    """Return variables, pairs of a name and a value, as the JSON text that is encrypted.

    It is compact, and keeps their order.

    Raises:
        UsageError: If a name or a value is not Unicode text.
    """
    items = [{"key": name, "value": value} for name, value in variables]
    if not all(isinstance(text, str) for item in items for text in item.values()):
        raise UsageError("environment: names and values must be text", reason="wrong_type")
    with suppress(UnicodeEncodeError):
        return json.dumps({"env": items}, separators=(",", ":"), ensure_ascii=False).encode()
    # Outside of a handler, because that error holds the plaintext.
    raise UsageError("environment: unpaired surrogate in text", reason="encoding")


def seal(plaintext: bytes, public_key: bytes, ephemeral_secret: bytes, iv: bytes) -> bytes:
    """Encrypt `plaintext` to an X25519 public key; the result is 60 bytes longer.

    Args:
        plaintext: Any bytes.
        public_key: Key of the recipient, 32 bytes.
        ephemeral_secret: 32 fresh random bytes.
        iv: 12 fresh random bytes.

    Raises:
        UsageError: If a size is wrong, or the public key has low order (shared secret of zeros).
    """
    key = x25519(ephemeral_secret, public_key)
    try:
        return x25519_public_key(ephemeral_secret) + iv + aes_gcm_encrypt(key, iv, plaintext)
    finally:
        wipe(key)


def open_sealed(secret: bytes, sealed: bytes) -> bytes:
    """Return the plaintext of `sealed`, the result of `seal`.

    `secret` is the X25519 secret key of the recipient, 32 bytes.

    Raises:
        FormatError: If `sealed` is shorter than 44 bytes or longer than 16 MiB, or its public key
            has low order.
        VerificationError: If `sealed` was altered, or encrypted to a different key.
        UsageError: If the secret is not 32 bytes.
    """
    require_size("X25519 secret", secret, 32)
    if len(sealed) < _HEAD_SIZE:
        message = f"encrypted environment: must be {_HEAD_SIZE} bytes or more, not {len(sealed)}"
        raise FormatError(message, reason="truncated", offset=len(sealed))
    if len(sealed) > _LARGEST:
        message = f"encrypted environment: must be at most {_LARGEST} bytes, not {len(sealed)}"
        raise FormatError(message, reason="too_large")
    try:
        key = x25519(secret, sealed[:_PUBLIC_KEY_SIZE])
    except UsageError as error:
        message = f"encrypted environment: {error}"
        raise FormatError(message, reason="wrong_value", offset=0) from error
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
    """Recover the signer of an application's encryption key.

    Compare the result with the key of a trusted KMS: any key can produce a valid signature.

    Args:
        public_key: X25519 public key of the application, 32 bytes.
        signature: 65 bytes over key, application and time (`signature_v1` of the KMS).
        app_id: 20 bytes in hex, with or without `0x`.
        timestamp: Time of the signature from the KMS, in seconds since 1970.
        now: Current time in seconds since 1970.
        max_age_seconds: Largest allowed age of the timestamp. A timestamp at most 60 seconds in the
            future is accepted.

    Returns:
        The public key of the signer as `0x` and 66 hex digits (compressed secp256k1), or None if
        an argument is malformed, the timestamp is out of range, or no key has this signature.
    """
    if not 0 <= timestamp < 1 << 64:
        return None
    if now - timestamp > max_age_seconds or timestamp - now > _MAX_SKEW_SECONDS:
        return None
    return _signer(public_key, signature, app_id, timestamp.to_bytes(8, "big"))


def verify_env_encrypt_public_key_legacy(
    public_key: bytes, signature: bytes, app_id: str
) -> str | None:
    """Recover the signer of an application's encryption key from a signature without timestamp.

    Such a signature never expires and can be replayed: use it only with a KMS that does not return
    signatures with a timestamp. Compare the result with the key of a trusted KMS.

    Args:
        public_key: X25519 public key of the application, 32 bytes.
        signature: 65 bytes over key and application (`signature` of the KMS).
        app_id: 20 bytes in hex, with or without `0x`.

    Returns:
        The public key of the signer as `0x` and 66 hex digits (compressed secp256k1), or None if an
        argument is malformed, or no key has this signature.
    """
    return _signer(public_key, signature, app_id, b"")


def _signer(public_key: bytes, signature: bytes, app_id: str, time: bytes) -> str | None:
    if len(public_key) != _PUBLIC_KEY_SIZE:  # the fields are concatenated without lengths
        return None
    try:
        app = bytes.fromhex(app_id.removeprefix("0x"))
        if len(app) != _APP_ID_SIZE:  # also without length
            return None
        digest = keccak256(_SIGNED_TAG + app + time + public_key)
        return "0x" + k256_recover(signature, digest).hex()
    except (ValueError, SignatureError):
        return None


def _items(plaintext: bytes) -> list[object]:
    """Return the array `env` of the JSON `plaintext`; errors have no cause, which would hold it."""
    try:
        check_depth(plaintext)
        is_json, found = True, json.loads(plaintext.decode())
    except (ValueError, RecursionError):
        is_json, found = False, None
    if not is_json:
        raise FormatError("decrypted environment: must be JSON", reason="syntax")
    items = found.get("env") if isinstance(found, dict) else None
    if not isinstance(items, list):
        raise FormatError('decrypted environment: "env" must be an array', reason="wrong_type")
    if len(items) > _MAX_ITEMS:
        message = f"decrypted environment: must be at most {_MAX_ITEMS} items, not {len(items)}"
        raise FormatError(message, reason="too_many")
    return items


def _pair(index: int, item: object) -> tuple[str, str]:
    if isinstance(item, dict):
        name, value = item.get("key"), item.get("value")
        if isinstance(name, str) and isinstance(value, str):
            return name, value
    raise _error(index, "wrong_type", 'must be an object with the texts "key" and "value"')


def _checked_size(index: int, name: str, value: str) -> int:
    """Check name and value of a variable against the limits; return their size in bytes.

    `index` is its position, for the text of the FormatError.
    """
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise _error(index, "wrong_value", "name: must be an identifier of at most 255 bytes")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0:  # outside of the handler, because that error holds the value
        raise _error(index, "encoding", "value: unpaired surrogate in text")
    if size > _MAX_VALUE:
        raise _error(index, "too_large", f"value: {size} bytes, at most {_MAX_VALUE}")
    return len(name) + size


def _error(index: int, reason: FormatReason, problem: str) -> FormatError:
    return FormatError(f"environment variable {index}: {problem}", reason=reason)
