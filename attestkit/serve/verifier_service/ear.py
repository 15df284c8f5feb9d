"""Signed attestation results (EAR) of the verifier service: the signing key."""

import os
import stat
from pathlib import Path
from typing import Final

from attestkit._crypto.zeroize import wipe
from attestkit._system.untrusted_files import open_regular
from attestkit.errors import ConfigError, FormatError
from attestkit.verifier.ear.signed_token import EarKey

_LARGEST: Final = 65_536  # bytes of a key file


def encode_key_set(key: EarKey) -> bytes:
    """Return the public key as a JWKS (RFC 7517, section 5) in JSON."""
    import json  # lazy: only with a key

    return json.dumps({"keys": [key.public.to_jwk()]}, separators=(",", ":")).encode("ascii")


def read_ear_key(option: str, path: Path) -> EarKey:
    """Return the private key in a file: PEM of Ed25519 or P-256, or 32 raw bytes of Ed25519.

    Raises:
        ConfigError: If the file cannot be read, is accessible to other users, or has no such key.
            The text names `option` and file.
    """
    try:
        fd = open_regular(path, os.O_RDONLY, follow=True)
        with os.fdopen(fd, "rb", buffering=0) as file:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if mode & 0o077:
                problem = f"accessible to other users: mode {mode:04o}; run chmod 600 on it"
                raise ConfigError(f"{option} {path}: {problem}", reason="permissions")
            data = file.read(_LARGEST + 1)
    except OSError as error:
        problem = error.strerror or str(error)
        raise ConfigError(f"{option} {path}: {problem}", reason="unreadable") from error
    try:
        return EarKey.from_bytes(data)
    except FormatError as error:
        raise ConfigError(f"{option} {path}: {error}", reason="syntax") from error
    finally:
        wipe(data)
