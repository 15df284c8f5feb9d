"""Signed attestation results (EAR) of the verifier service: request parameters and signing key.

`POST /verify?format=ear` requests one. `encoding` selects jwt or cose; its default comes from the
Accept header, else jwt. `nonce` is 8 to 64 bytes in hex: the evidence must be bound to it.
Without `format=ear` both are refused, so that no client takes an unchecked nonce for a checked one.
"""

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import parse_qsl

from attestkit._crypto.zeroize import wipe
from attestkit._formats.strict_json import from_hex
from attestkit._system.untrusted_files import open_regular
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.report_data import check_nonce
from attestkit.verifier.ear.result_token import EarKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attestkit.verifier.ear.envelope import TokenFormat

MEDIA_TYPES: Final = {"jwt": b"application/eat+jwt", "cose": b"application/eat+cwt"}
"""Media type of each encoding (RFC 9782)."""

_SIGNED: Final = frozenset(MEDIA_TYPES.values())
_NO_WEIGHT: Final = re.compile(rb"q=0(?:\.0*)?")
_PARAMETERS: Final = frozenset({"format", "encoding", "nonce"})
_LARGEST: Final = 65_536  # bytes of a key file
_LONGEST: Final = 1024  # bytes of a query that is parsed


class EarRequest(NamedTuple):
    """Encoding and nonce of a requested EAR."""

    form: "TokenFormat"
    nonce: bytes | None

    @classmethod
    def from_request(
        cls, query: bytes, headers: "Iterable[tuple[bytes, bytes]]"
    ) -> "EarRequest | None":
        """Parse the query and the Accept header; return None if no EAR is requested.

        Raises:
            FormatError: If a parameter is invalid or given more than once.
        """
        found = _parameters(query)
        output_format = found.get("format", "json")
        if output_format not in {"json", "ear"}:
            raise FormatError("format: must be json or ear", reason="wrong_value")
        if output_format == "json":
            for name in ("nonce", "encoding"):
                if name in found:
                    raise FormatError(f"{name}: only with format=ear", reason="inconsistent")
            return None
        accepted = b",".join(value for name, value in headers if name == b"accept").lower()
        form = found.get("encoding", "cose" if _prefers_cwt(accepted) else "jwt")
        if form not in {"jwt", "cose"}:
            raise FormatError("encoding: must be jwt or cose", reason="wrong_value")
        return cls(cast("TokenFormat", form), _nonce(found.get("nonce")))

    @property
    def media_type(self) -> bytes:
        """Content type of the response."""
        return MEDIA_TYPES[self.form]


def encode_key_set(key: EarKey) -> bytes:
    """Return the public key as a JWKS (RFC 7517, section 5)."""
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


def _parameters(query: bytes) -> dict[str, str]:
    """Return the known parameters of a query; others are ignored.

    Raises:
        FormatError: If a parameter is repeated, or a query of over 1,024 bytes has a `format`.
    """
    found: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in found:
            raise FormatError(f"{name}: given more than once", reason="duplicate")
        if name in _PARAMETERS:
            found[name] = value
        elif name.lower() in _PARAMETERS:
            raise FormatError("query: parameter names are in lower case", reason="unknown_field")
    if "format" in found and len(query) > _LONGEST:
        raise FormatError(f"query: longer than {_LONGEST} bytes", reason="too_large")
    return found


def _prefers_cwt(accepted: bytes) -> bool:
    """Return whether an Accept header lists the CWT, and before the JWT if it lists both.

    Args:
        accepted: The header in lower case. A type with weight 0 is not acceptable (RFC 9110,
            section 12.4.2); other weights are ignored.
    """
    for media_range in accepted.split(b","):
        name, *parameters = [part.strip(b" \t") for part in media_range.split(b";")]
        if name in _SIGNED and not any(_NO_WEIGHT.fullmatch(part) for part in parameters):
            return name == MEDIA_TYPES["cose"]
    return False


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    nonce = from_hex(text, "nonce")
    try:
        check_nonce(nonce)
    except UsageError as error:
        raise FormatError(str(error), reason="wrong_size") from error
    return nonce
