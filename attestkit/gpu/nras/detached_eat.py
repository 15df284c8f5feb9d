"""Reader of detached EAT bundles, as NVIDIA's service writes them; it verifies nothing.

A bundle has an overall token with the hashes of the devices' tokens, and these tokens.
"""

import hmac
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._formats.compact_jws import CompactJws, read_compact_jws
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, GpuEvidenceError

MAX_BUNDLE: Final = 1 << 20
"""Maximum size of a bundle in bytes."""

MAX_TOKEN: Final = 32 << 10
"""Maximum size of a token in bytes; NVIDIA's have up to 3,000."""

MAX_DEVICES: Final = 64
"""Maximum number of devices."""

NRAS_DIGESTS: Final = frozenset({"SHA-256"})
"""Name of SHA-256 in tokens of NVIDIA's attestation service."""

LOCAL_DIGESTS: Final = frozenset({"SHA-256", "SHA256"})
"""Names of SHA-256 in tokens of NVIDIA's local tools."""

_SUBJECT: Final = "detached EAT"
_NAME: Final = re.compile(r"(?:GPU|SWITCH)-(?:0|[1-9][0-9]{0,2})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class DetachedEat(NamedTuple):
    """A bundle of tokens, each a JWT in compact serialization; not verified."""

    overall: bytes  # token about all devices, with the hashes of their tokens
    devices: Mapping[str, bytes]  # by name, such as GPU-0 and SWITCH-0, in their order


def read_detached_eat(data: bytes | str) -> DetachedEat:
    """Read a bundle in JSON: `[["JWT", overall], {"GPU-0": token, ...}]`.

    Raises:
        FormatError: If the bundle is malformed or over 1 MiB, or has no device or more than 64, an
            invalid name of a device, or a token over 32 KiB.
    """
    if len(data) > MAX_BUNDLE:
        raise _bad(f"{len(data)} bytes, at most {MAX_BUNDLE}", "too_large")
    return read_bundle(strict_json.read(data, _SUBJECT))


def read_bundle(value: object) -> DetachedEat:
    """Read a bundle, `value`, decoded from JSON; errors are those of `read_detached_eat`."""
    if not isinstance(value, list) or len(value) != 2:
        raise _bad("must be an array of two items", "wrong_type")
    head, devices = value
    if not isinstance(head, list) or len(head) != 2 or head[0] != "JWT":
        raise _bad('must begin with ["JWT", token]', "wrong_value")
    if not isinstance(devices, dict):
        raise _bad("the devices' tokens must be an object", "wrong_type")
    _check_names(devices)
    # In the order of their numbers: writers sort the names as text.
    names = sorted(devices, key=lambda name: (name[:1], len(name), name))
    tokens = {name: _token(devices[name], name) for name in names}
    return DetachedEat(_token(head[1], "overall token"), tokens)


def read_token(token: bytes, name: str) -> CompactJws:
    """Return the parts of a token, not verified; `name` is the token's name in errors.

    Raises:
        FormatError: If the token is malformed.
    """
    return read_compact_jws(token, MAX_TOKEN, f"{_SUBJECT}: {name}")


def check_digests(
    claims: Mapping[str, Any], devices: Mapping[str, bytes], names: frozenset[str] = NRAS_DIGESTS
) -> None:
    """Check that an overall token has the hash of each device's token, and no other hash.

    Args:
        claims: Claims of the overall token.
        devices: Tokens of the devices by name.
        names: Accepted names of the hash algorithm SHA-256.

    Raises:
        FormatError: If the hashes are malformed.
        GpuEvidenceError: If a hash or a token is missing, or they differ (`nras_digest`).
    """
    submods = claims.get("submods")
    if not isinstance(submods, dict):
        raise _bad("submods: must be an object", "missing" if submods is None else "wrong_type")
    _check_names(submods)
    expected = {name: _digest(value, name, names) for name, value in submods.items()}
    if expected.keys() != devices.keys():
        name = min(expected.keys() ^ devices.keys())
        problem = "token missing" if name in expected else "no hash in the overall token"
        raise GpuEvidenceError(f"{_SUBJECT}: {name}: {problem}", reason="nras_digest")
    for at, (name, token) in enumerate(devices.items()):
        if not hmac.compare_digest(sha256(token), expected[name]):
            message = f"{_SUBJECT}: {name}: the token's hash differs from the overall token's"
            raise GpuEvidenceError(message, reason="nras_digest", device=at)


def _digest(value: object, name: str, names: frozenset[str]) -> bytes:
    """Return the hash (SHA-256) in `value`, which must be `["DIGEST", [ALGORITHM, HEX]]`.

    `names` are the accepted names of the algorithm; `name` is the token's name in errors.
    """
    match value:
        case ["DIGEST", [str(algorithm), str(text)]] if algorithm in names:
            if _DIGEST.fullmatch(text):
                return bytes.fromhex(text)
            raise _bad(f"submods: {name}: must be 64 hex digits in lower case", "encoding")
    problem = f'submods: {name}: must be ["DIGEST", ["SHA-256", HEX]]'
    raise _bad(problem, "wrong_value")


def _check_names(devices: Mapping[str, Any]) -> None:
    """Raise FormatError unless there are 1 to 64 names of devices, all valid."""
    if not devices:
        raise _bad("must have a device", "missing")
    if len(devices) > MAX_DEVICES:
        raise _bad(f"{len(devices)} devices, at most {MAX_DEVICES}", "too_many")
    for name in devices:
        if not _NAME.fullmatch(name):
            raise _bad(f"name must be such as GPU-0 or SWITCH-0: {shown(name)}", "wrong_value")


def _token(value: object, name: str) -> bytes:
    if not isinstance(value, str):
        raise _bad(f"{name}: must be a string", "wrong_type")
    if len(value) > MAX_TOKEN:
        raise _bad(f"{name}: {len(value)} bytes, at most {MAX_TOKEN}", "too_large")
    if not value.isascii():
        raise _bad(f"{name}: must be ASCII text", "encoding")
    return value.encode("ascii")


def _bad(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"{_SUBJECT}: {problem}", reason=reason)
