"""Environment variables encrypted to an application: the legacy form and SealedEnv version 1.

Legacy form: see `attestkit.dstack.env_encryption`, raw or in hex. SealedEnv version 1 (dstack
0.6.4) is a JSON object with the encapsulated key and the ciphertext of HPKE (RFC 9180), and the
epochs of the keys, which HPKE authenticates.

Neither form authenticates its origin: the public key suffices to encrypt variables.
"""

import os
from binascii import b2a_base64
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from attestkit._argument_checks import require_size, wrong_type
from attestkit._crypto.aead import IV_SIZE
from attestkit._crypto.hpke import ENCAPSULATED_SIZE, HPKE_TAG_SIZE, hpke_open, hpke_seal
from attestkit._crypto.zeroize import wipe
from attestkit._formats.strict_json import from_base64, read_object
from attestkit._native import unhex
from attestkit._outcomes.reasons import FormatReason, UsageReason
from attestkit._sanitize import shown
from attestkit.dstack.env_encryption import open_sealed, read_variables, seal, write_variables
from attestkit.errors import FormatError, UsageError

__all__ = ["LARGEST_SEALED", "Epochs", "open_env", "seal_env"]

LARGEST_SEALED: Final = 32 << 20
"""Bytes of a sealed environment in text; the variables have at most 1 MiB in all."""
_WHAT: Final = "sealed environment"
_SPACE: Final = " \t\r\n"
_VERSION: Final = 1
_HIGHEST_EPOCH: Final = (1 << 32) - 1
_USAGE_REASONS: Final[dict[FormatReason, UsageReason]] = {
    "too_large": "too_large",
    "too_many": "too_many",
    "encoding": "encoding",
    "wrong_type": "wrong_type",
}


class Epochs(NamedTuple):
    """Epochs of the keys to which variables are encrypted: 0 to 4,294,967,295 each.

    An epoch is the number of a generation of keys, which ends when a key is replaced.
    """

    root: int
    app: int


def seal_env(
    variables: Iterable[tuple[str, str]],
    public_key: bytes,
    *,
    epochs: Epochs | tuple[int, int] | None = None,
) -> str:
    """Encrypt environment variables to an application's public key.

    Verify the public key before: `verify_env_encrypt_public_key` with the signature of the KMS.

    Args:
        variables: Names and values, in order, with the limits of `open_env`.
        public_key: X25519 public key of the application, 32 bytes.
        epochs: Root and app epoch of the key, for SealedEnv version 1; None selects the legacy
            form.

    Returns:
        JSON for SealedEnv, hex for the legacy form.

    Raises:
        UsageError: If the public key is malformed or has low order, an epoch is out of range, a
            name is not an identifier, or a limit is exceeded.
    """
    require_size("X25519 public key", public_key, 32)
    checked = None if epochs is None else _require_epochs(epochs)
    plaintext = write_variables(variables)
    try:
        _check_variables(plaintext)
        if checked is None:
            secret = os.urandom(32)
            try:
                return seal(plaintext, public_key, secret, os.urandom(IV_SIZE)).hex()
            finally:
                wipe(secret)
        encapsulated, ciphertext = hpke_seal(public_key, _info(checked), plaintext)
    finally:
        wipe(plaintext)
    return (
        f'{{"version":{_VERSION},"root_epoch":{checked.root},"app_epoch":{checked.app},'
        f'"enc":"{_base64(encapsulated)}","ciphertext":"{_base64(ciphertext)}"}}'
    )


def open_env(
    sealed: bytes | str,
    secret: bytes,
    *,
    epochs: Epochs | tuple[int, int] | None = None,
    allowed: Collection[str] | None = None,
) -> dict[str, str]:
    """Decrypt environment variables; return values by name in order, the last of duplicates.

    Bytes that are not all ASCII are the raw legacy form; text is SealedEnv if it begins with `{`,
    and otherwise the legacy form in hex.

    Args:
        sealed: Sealed environment, at most 32 MiB.
        secret: X25519 secret key of the application, 32 bytes.
        epochs: Expected root and app epoch; the legacy form is then rejected. None accepts all.
        allowed: Names that the application accepts; other variables are ignored, unchecked. None
            accepts all names.

    Raises:
        FormatError: If the envelope or the decrypted text is malformed, the version is not 1, the
            epochs are not the expected ones, a name is not an identifier, or a limit is exceeded:
            1024 variables, 255 bytes per name, 131072 bytes per value, 1048576 bytes in all.
        VerificationError: If the ciphertext was altered, or encrypted to a different key.
        UsageError: If the secret is not 32 bytes, or an expected epoch is out of range.
    """
    require_size("X25519 secret", secret, 32)
    expected = None if epochs is None else _require_epochs(epochs)
    plaintext = _decrypt(sealed, secret, expected)
    try:
        return read_variables(plaintext, allowed)
    finally:
        wipe(plaintext)


class _Envelope(NamedTuple):
    """Checked members of a SealedEnv: epochs, encapsulated key (32 bytes), and ciphertext."""

    epochs: Epochs
    encapsulated: bytes
    ciphertext: bytes


def _decrypt(sealed: bytes | str, secret: bytes, expected: Epochs | None) -> bytes:
    if len(sealed) > LARGEST_SEALED:
        message = f"{_WHAT}: {len(sealed)} bytes, at most {LARGEST_SEALED}"
        raise FormatError(message, reason="too_large")
    text = _text(sealed)
    if text is not None and text.startswith("{"):
        envelope = _read_envelope(text, expected)
        return hpke_open(secret, envelope.encapsulated, _info(envelope.epochs), envelope.ciphertext)
    if expected is not None:
        message = f"{_WHAT}: must be SealedEnv, because epochs are expected; seal it with epochs"
        raise FormatError(message, reason="unrecognized")
    return open_sealed(secret, _read_legacy(sealed if text is None else text))


def _text(sealed: bytes | str) -> str | None:
    """Return `sealed` as text without white space around it; None for bytes that are not all ASCII.

    The chance that raw bytes of the legacy form are all ASCII is 2**-60, or less.
    """
    if isinstance(sealed, str):
        return sealed.strip(_SPACE)
    if not isinstance(sealed, bytes):
        raise wrong_type(_WHAT, "bytes or text", sealed)
    return sealed.decode("ascii").strip(_SPACE) if sealed.isascii() else None


def _read_legacy(sealed: bytes | str) -> bytes:
    if isinstance(sealed, bytes):
        return sealed
    if (raw := unhex(sealed)) is None:
        raise FormatError(f"{_WHAT}: must be JSON or hex", reason="unrecognized")
    return raw


def _read_envelope(text: str, expected: Epochs | None) -> _Envelope:
    """Return the members of `text`, an envelope in JSON; unknown members are ignored.

    `expected` are the epochs that it must have; None accepts any.
    """
    fields = read_object(text, _WHAT)
    version = _member(fields, "version")
    if type(version) is not int or version != _VERSION:
        message = f"{_WHAT}: version: must be 1, not {shown(version)}"
        raise FormatError(message, reason="unsupported_version")
    epochs = Epochs(_read_epoch(fields, "root_epoch"), _read_epoch(fields, "app_epoch"))
    if expected is not None and epochs != expected:
        message = (
            f"{_WHAT}: epochs must be {expected.root} (root) and {expected.app} (app), not "
            f"{epochs.root} and {epochs.app}; seal it again to the current keys"
        )
        raise FormatError(message, reason="wrong_value")
    encapsulated = from_base64(_member(fields, "enc"), f"{_WHAT}: enc")
    if len(encapsulated) != ENCAPSULATED_SIZE:
        message = f"{_WHAT}: enc: must be 32 bytes, not {len(encapsulated)}"
        raise FormatError(message, reason="wrong_size")
    ciphertext = from_base64(_member(fields, "ciphertext"), f"{_WHAT}: ciphertext")
    if len(ciphertext) < HPKE_TAG_SIZE:
        message = f"{_WHAT}: ciphertext: must have 16 bytes or more, not {len(ciphertext)}"
        raise FormatError(message, reason="truncated")
    return _Envelope(epochs, encapsulated, ciphertext)


def _member(fields: dict[str, object], name: str) -> object:
    if name not in fields:
        raise FormatError(f"{_WHAT}: {name}: missing", reason="missing")
    return fields[name]


def _read_epoch(fields: dict[str, object], name: str) -> int:
    value = _member(fields, name)
    if type(value) is not int:  # neither a number with a fraction, nor true
        raise FormatError(f"{_WHAT}: {name}: must be an integer", reason="wrong_type")
    if not 0 <= value <= _HIGHEST_EPOCH:
        message = f"{_WHAT}: {name}: must be 0 to {_HIGHEST_EPOCH}"
        raise FormatError(message, reason="wrong_value")
    return value


def _require_epochs(epochs: Epochs | tuple[int, int]) -> Epochs:
    found = Epochs(*epochs)
    for epoch in found:
        if type(epoch) is not int:
            raise wrong_type("epoch", "an int", epoch)
        if not 0 <= epoch <= _HIGHEST_EPOCH:
            raise UsageError(f"epoch: must be 0 to {_HIGHEST_EPOCH}", reason="out_of_range")
    return found


def _check_variables(plaintext: bytes) -> None:
    """Raise UsageError for variables (JSON, not encrypted) that a guest would reject."""
    try:
        read_variables(plaintext, None)
    except FormatError as error:
        reason = _USAGE_REASONS.get(error.reason, "wrong_value")
        raise UsageError(error.message, reason=reason) from error


def _info(epochs: Epochs) -> bytes:
    return f"dstack-sealed-env-v1:{epochs.root}:{epochs.app}".encode()


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()
