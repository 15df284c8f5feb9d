"""Access control of the external listener from options.

The public keys that sign access tokens are Ed25519 keys, as hex, PEM or file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attestkit._crypto.ed25519 import ed25519_has_prime_order
from attestkit._formats.strict_json import from_base64
from attestkit.dstack.host_shared_folder import read_file
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.serve.config.option_values import prefix_errors
from attestkit.serve.config.options import Options
from attestkit.serve.external_auth.access_control import ExternalAuth, check_scopes

MOST_KEYS: Final = 8
"""Maximum number of keys: each is tried for a token."""

_SPKI_HEAD: Final = bytes.fromhex("302a300506032b6570032100")  # RFC 8410, 4, before the key
_PEM: Final = re.compile(
    r"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]{1,128})-----END PUBLIC KEY-----\s*"
)
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
_LARGEST: Final = 4096  # bytes of a file
# Start of a JWK, and of an Ed25519 private key in hex or base64 (RFC 8410, section 7).
_NO_PATH: Final = ("{", "302e0201", "30510201", "MC4CAQ", "MFECAQ")


def read_public_keys(values: Sequence[str]) -> tuple[bytes, ...]:
    """Return the raw keys, 32 bytes each, of 1 to 8 values.

    Args:
        values: Each is 64 hex digits, a key in PEM, or the path of a file with one of them or with
            32 raw bytes.

    Raises:
        ConfigError: If there is no key or more than 8, one is malformed or occurs twice, a file
            cannot be read, or a key is not a point of prime order (its signatures can be forged).
    """
    if not 0 < len(values) <= MOST_KEYS:
        problem = f"must be 1 to {MOST_KEYS} public keys, not {len(values)}"
        raise ConfigError(problem, reason="too_many" if values else "missing")
    found = [_read_key(value) for value in values]
    if len({*found}) < len(found):
        raise ConfigError("must not have a public key twice; give each once", reason="duplicate")
    return tuple(found)


def _read_key(value: str) -> bytes:
    if _HEX.fullmatch(value):
        return _checked(bytes.fromhex(value), "public key")
    if "-----BEGIN" in value:
        return _checked(_from_text(value, "public key"), "public key")
    if value.lstrip().startswith(_NO_PATH):  # an error about a file would show it
        problem = "public key: must be in PEM or hex, not a JWK or a private key"
        raise ConfigError(problem, reason="wrong_type")
    return parse_public_key(read_file(Path(value)), value)


def parse_public_key(data: bytes, where: str) -> bytes:
    """Return the raw key, 32 bytes, in `data`, a file's content: raw, 64 hex digits, or PEM.

    Raises:
        ConfigError: If it is malformed, over 4096 bytes, or not a point of prime order; the text
            begins with `where`, such as the path.
    """
    if len(data) > _LARGEST:
        raise ConfigError(f"{where}: must be at most {_LARGEST} bytes", reason="too_large")
    raw = data if len(data) == 32 else _from_text(data.decode("ascii", "replace"), where)
    return _checked(raw, where)


def _from_text(text: str, where: str) -> bytes:
    if "PRIVATE KEY-----" in text:
        raise ConfigError(f"{where}: must be a public key, not a private one", reason="wrong_type")
    if _HEX.fullmatch(text.strip()):
        return bytes.fromhex(text.strip())
    der = b""
    if (found := _PEM.fullmatch(text)) is not None:
        try:
            der = from_base64("".join(found[1].split()), where)
        except FormatError:
            der = b""
    if len(der) != len(_SPKI_HEAD) + 32 or not der.startswith(_SPKI_HEAD):
        problem = "must be an Ed25519 public key: PEM, 64 hex digits, or a file with 32 raw bytes"
        raise ConfigError(f"{where}: {problem}", reason="wrong_value")
    return der[len(_SPKI_HEAD) :]


def _checked(key: bytes, where: str) -> bytes:
    if not ed25519_has_prime_order(key):
        problem = "must be a valid Ed25519 public key: a point of prime order"
        raise ConfigError(f"{where}: {problem}", reason="wrong_value")
    return key


def load_external_auth(options: Options, *, listening: bool) -> ExternalAuth | None:
    """Return the access control that options name; None if it is off.

    Args:
        options: Options of the command line and the configuration file.
        listening: Whether the external listener is on.

    Raises:
        UsageError: If a scope is unknown, scopes are given without a key, or the listener is off.
        ConfigError: If a key is not valid, or such an option is from a configuration file.
    """
    if options.auth_key is None:
        if options.anonymous_scopes is not None:
            raise options.error("anonymous_scopes", "requires a key (--auth-key)")
        return None
    if not listening:
        raise options.error("auth_key", "requires the external listener; turn it on by --http")
    with prefix_errors(options.prefix("auth_key")):
        keys = read_public_keys(options.auth_key)
    names = [] if options.anonymous_scopes is None else options.anonymous_scopes.split(",")
    try:
        scopes = check_scopes(name.strip() for name in names)
    except UsageError as error:
        raise options.error("anonymous_scopes", str(error), "wrong_value") from error
    return ExternalAuth(keys, scopes)
