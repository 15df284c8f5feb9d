"""DICE extensions of the leaf of a device chain (nvidia-gpu.md, section 3.4).

Hopper and LS10 have the key of the layer below and one FWID, Blackwell has a DiceTcbInfo of TCG
(DICE Attestation Architecture 1.1, section 6.1.1).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from attestkit._crypto.der import OCTET_STRING, OID, SEQUENCE, DerReader, context, dotted_oid
from attestkit._reasons import FormatReason
from attestkit.errors import FormatError

COMPOSITE_OID: Final = "2.23.133.5.4.1"
"""The extension of Hopper and LS10."""

TCB_INFO_OID: Final = "2.23.133.5.4.1.1"
"""The extension of Blackwell."""

FWID_SIZE: Final = 48
"""Bytes of a FWID: SHA-384."""

_SHA384: Final = "2.16.840.1.101.3.4.2.2"
_VERSION: Final = 1
_MAX_FWIDS: Final = 8
_FWIDS: Final = 6  # tag number
# Implicit tags of a DiceTcbInfo in their order; all are optional.
_TCB_INFO: Final = (
    *(0x80 | number for number in range(_FWIDS)),
    context(_FWIDS),
    *(0x80 | number for number in range(_FWIDS + 1, 10)),
)


class Dice(NamedTuple):
    """Content of a DICE extension."""

    fwids: tuple[bytes, ...]  # 48 bytes each, at least one
    key: bytes | None  # SubjectPublicKeyInfo in DER; None on Blackwell


def read_dice(extensions: Mapping[str, bytes]) -> Dice:
    """Read the DICE extension of a leaf.

    Args:
        extensions: Contents of extensions by dotted OID.

    Raises:
        FormatError: If there is not exactly one of the two extensions, or it is malformed.
    """
    found = [oid for oid in (COMPOSITE_OID, TCB_INFO_OID) if oid in extensions]
    if len(found) != 1:
        problem = f"must be exactly one, not {len(found)}"
        raise _bad(problem, "duplicate" if found else "missing")
    value = extensions[found[0]]
    return _composite(value) if found == [COMPOSITE_OID] else _tcb_info(value)


def _composite(value: bytes) -> Dice:
    fields = DerReader(value).enter_only(SEQUENCE)
    at = fields.at
    version = fields.integer()
    if version != _VERSION:
        raise _bad(f"version must be {_VERSION}", "unsupported_version", at)
    key = fields.whole(SEQUENCE)
    fwid = _fwid(fields)
    fields.finish()
    return Dice((fwid,), key)


def _tcb_info(value: bytes) -> Dice:
    fields = DerReader(value).enter_only(SEQUENCE)
    fwids: list[bytes] = []
    for tag in _TCB_INFO:
        if fields.tag() != tag:
            continue
        if tag != context(_FWIDS):
            fields.content(tag)
            continue
        entries = fields.enter(tag)
        while entries.tag() is not None:
            if len(fwids) == _MAX_FWIDS:
                raise _bad(f"more than {_MAX_FWIDS} FWIDs", "too_many", entries.at)
            fwids.append(_fwid(entries))
    fields.finish()
    if not fwids:
        raise _bad("has no FWID", "missing")
    return Dice(tuple(fwids), None)


def _fwid(reader: DerReader) -> bytes:
    """Read a FWID: a SEQUENCE of the hash algorithm and the digest."""
    at = reader.at
    fields = reader.enter(SEQUENCE)
    algorithm = dotted_oid(fields.content(OID))
    digest = fields.content(OCTET_STRING)
    fields.finish()
    if algorithm != _SHA384:
        raise _bad("FWID must be SHA-384", "unsupported_algorithm", at)
    if len(digest) != FWID_SIZE:
        raise _bad(f"FWID must have {FWID_SIZE} bytes, not {len(digest)}", "wrong_size", at)
    return digest


def _bad(problem: str, reason: FormatReason, offset: int | None = None) -> FormatError:
    return FormatError(f"DICE extension: {problem}", reason=reason, offset=offset)
