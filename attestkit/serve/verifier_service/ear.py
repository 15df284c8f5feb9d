"""Signed verdicts of the verifier service: which form a request wants, and the key that signs them.

`POST /verify?format=ear` asks for one. Its form is that of `encoding=jwt` or `cose`, else that of
the Accept header, else a JWT; `nonce` is 8 to 64 bytes in hex.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_plus

from attestkit._crypto.zeroize import wipe
from attestkit._system.untrusted_files import open_regular
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.verifier.ear.result_token import EarKey, check_nonce, sign_ear

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attestkit.verifier.ear.envelope import Form
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
    from attestkit.verifier.result import AttestationResult

__all__ = ["MEDIA_TYPES", "EarRequest", "key_set", "read_ear_key"]

MEDIA_TYPES: Final = {"jwt": b"application/eat+jwt", "cose": b"application/eat+cwt"}
"""By form (RFC 9782)."""

_SIGNED: Final = frozenset(MEDIA_TYPES.values())
_NO_WEIGHT: Final = re.compile(rb"q=0(?:\.0*)?")
_LARGEST: Final = 65_536  # bytes of a file with a key
_LONGEST: Final = 1024  # bytes of a query that is looked at


class EarRequest(NamedTuple):
    """How somebody wants a verdict signed."""

    form: "Form"
    nonce: bytes | None

    @classmethod
    def from_request(
        cls, query: bytes, headers: "Iterable[tuple[bytes, bytes]]"
    ) -> "EarRequest | None":
        """Read the query and the Accept header; None where no EAR is asked for.

        Raises:
            FormatError: A parameter has a value that is none of its, or is given twice.
        """
        found = _parameters(query)
        wanted = found.get("format", "json")
        if wanted not in {"json", "ear"}:
            raise FormatError("format is json or ear")
        if wanted == "json":
            return None
        accepted = b",".join(value for name, value in headers if name == b"accept").lower()
        form: Form = "cose" if _prefers_cwt(accepted) else "jwt"
        if (encoding := found.get("encoding")) is not None:
            if encoding not in {"jwt", "cose"}:
                raise FormatError("encoding is jwt or cose")
            form = "cose" if encoding == "cose" else "jwt"
        return cls(form, _nonce(found.get("nonce")))

    @property
    def media_type(self) -> bytes:
        """What the answer's Content-Type is."""
        return MEDIA_TYPES[self.form]

    def sign(
        self, result: "AttestationResult", key: EarKey, policy: "AppraisalPolicy | None"
    ) -> bytes:
        """Return the EAR; UsageError where it would be too large."""
        return sign_ear(result, key, form=self.form, nonce=self.nonce, policy=policy)


def key_set(key: EarKey) -> bytes:
    """Return the JWKS with the public key (RFC 7517, 5)."""
    import json  # late: once, and only where there is a key

    return json.dumps({"keys": [key.public.to_jwk()]}, separators=(",", ":")).encode("ascii")


def read_ear_key(option: str, path: Path) -> EarKey:
    """Return the private key in a file: PEM of Ed25519 or P-256, or 32 raw bytes of Ed25519.

    Raises:
        ConfigError: It cannot be read, others than its owner may do something with it, or it holds
            something else; the text names `option` and file.
    """
    try:
        fd = open_regular(path, os.O_RDONLY, follow=True)
        with os.fdopen(fd, "rb", buffering=0) as file:
            _check_mode(stat.S_IMODE(os.fstat(fd).st_mode))
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}") from error
    try:
        return EarKey.from_bytes(data)
    except FormatError as error:
        raise ConfigError(f"{option} {path}: {error}") from error
    finally:
        wipe(data)


def _check_mode(mode: int) -> None:
    if mode & 0o077:
        raise OSError(errno.EPERM, f"has mode {mode:04o}, which lets others in: chmod 600 it")


def _parameters(query: bytes) -> dict[str, str]:
    """Return the parameters that are known here; others are ignored, and so is a long query.

    Raises:
        FormatError: One is given twice, or a query of over 1,024 bytes has a `format`.
    """
    found: dict[str, str] = {}
    pairs = query.decode("latin-1").split("&")
    if len(query) > _LONGEST:
        if any(unquote_plus(pair.partition("=")[0]) == "format" for pair in pairs):
            raise FormatError(f"the query has over {_LONGEST} bytes")
        return found
    for pair in pairs:
        name, _, value = map(unquote_plus, pair.partition("="))
        if name not in {"format", "encoding", "nonce"}:
            continue
        if name in found:
            raise FormatError(f"{name} is given twice")
        found[name] = value
    return found


def _prefers_cwt(accepted: bytes) -> bool:
    """Tell whether an Accept header names the CWT, and before a JWT if it names that too.

    Args:
        accepted: The header in small letters; what has the weight 0 is not acceptable (RFC 9110,
            12.4.2), other weights are not looked at.
    """
    for one in accepted.split(b","):
        name, *parameters = [part.strip(b" \t") for part in one.split(b";")]
        if name in _SIGNED and not any(_NO_WEIGHT.fullmatch(part) for part in parameters):
            return name == MEDIA_TYPES["cose"]
    return False


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    problem = "nonce is 8 to 64 bytes in hex, without prefix or blanks"
    try:
        nonce = bytes.fromhex(text)
        check_nonce(nonce)
    except (ValueError, UsageError) as error:
        raise FormatError(problem) from error
    if nonce.hex() != text.lower():  # fromhex takes blanks
        raise FormatError(problem)
    return nonce
