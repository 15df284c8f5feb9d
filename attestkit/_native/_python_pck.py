"""The function of pck_certificate.c in pure Python: one regular expression, then the lengths.

Constants of the layout are in the expression, so that a match can differ from a certificate in its
lengths, the dates and the padding of integers only, which are checked after it.
"""

import re
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Final

from attestkit._native._pck_fields import PckCertificateFields

_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_SPKI: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
_AUTHORITY_KEY_ID: Final = bytes.fromhex("301f0603551d23041830168014")
_SUBJECT_KEY_ID: Final = bytes.fromhex("301d0603551d0e04160414")
# Key usage, critical: digitalSignature and nonRepudiation. Basic constraints, critical: not a CA.
_CONSTRAINTS: Final = bytes.fromhex("300e0603551d0f0101ff0404030206c0300c0603551d130101ff04023000")
_SGX: Final = bytes.fromhex("2a864886f84d010d01")
_COMPONENTS: Final = tuple(f"sgx_2_{n}" for n in range(1, 17))
_PCESVN_AT: Final = 4 + len(_SGX) + 2 + 2  # offset of its content in its entry
_UTC_TIME: Final = 0x17
_LONGEST_SERIAL: Final = 20
_LONGEST_URL: Final = 110
_LONGEST_SCALAR: Final = 32
# Groups that are whole elements with a length of two bytes.
_LONG_GROUPS: Final = (
    *("certificate", "tbs", "tagged", "extensions"),
    *("extension", "value", "entries", "tcb", "svns"),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SECOND: Final = timedelta(seconds=1)


def _element(tag: int, *content: bytes) -> bytes:
    joined = b"".join(content)
    return bytes((tag, len(joined))) + joined


def _name(common_name: bytes) -> bytes:
    """Return a name of Intel's PKI in DER: common name, organisation, locality, state, country."""
    attributes = (
        (3, 0x0C, common_name),
        (10, 0x0C, b"Intel Corporation"),
        (7, 0x0C, b"Santa Clara"),
        (8, 0x0C, b"CA"),
        (6, 0x13, b"US"),
    )
    return _element(
        0x30,
        *(
            _element(0x31, _element(0x30, _element(6, bytes((0x55, 4, arc))), _element(tag, value)))
            for arc, tag, value in attributes
        ),
    )


def _group(name: str, pattern: bytes) -> bytes:
    return b"(?P<%b>%b)" % (name.encode(), pattern)


def _long(name: str, tag: bytes, *content: bytes) -> bytes:
    """Return the pattern of an element with a length of two bytes, which the group `name` spans."""
    return _group(name, re.escape(tag) + rb"\x82(?!\0).{2}" + b"".join(content))


def _entry(arcs: bytes, tag: bytes, *contents: tuple[str, int]) -> bytes:
    """Return the pattern of an entry of the SGX extension, in a group named by its arcs.

    Args:
        arcs: The end of its OID, after that of the extension.
        tag: DER tag of the value.
        contents: Alternative patterns of the content, with their sizes.
    """
    oid = _element(6, _SGX + arcs)
    alternatives = [
        re.escape(bytes((0x30, len(oid) + 2 + size)) + oid + tag + bytes((size,)))
        + content.encode()
        for content, size in contents
    ]
    return _group("sgx_" + "_".join(map(str, arcs)), b"|".join(alternatives))


def _octets(arcs: bytes, size: int) -> bytes:
    return _entry(arcs, b"\x04", (f".{{{size}}}", size))


_BYTE: Final = ((r"[\0-\x7f]", 1), (r"\0[\x80-\xff]", 2))
_TWO_BYTES: Final = (*_BYTE, (r"[\x01-\x7f].", 2), (r"\0[\x80-\xff].", 3))


def _tcb() -> bytes:
    entries = [_entry(bytes((2, n)), b"\x02", *_BYTE) for n in range(1, 17)]
    entries += [_entry(b"\x02\x11", b"\x02", *_TWO_BYTES), _octets(b"\x02\x12", 16)]
    return _long(
        "tcb", b"\x30", re.escape(_element(6, _SGX + b"\x02")), _long("svns", b"\x30", *entries)
    )


def _instance() -> bytes:
    """Return the pattern of the entries that only certificates of the Platform CA have."""
    flags = [_entry(bytes((7, n)), b"\x01", (r"[\0\xff]", 1)) for n in (1, 2, 3)]
    configuration = b"\x30\x44" + _element(6, _SGX + b"\x07") + b"\x30\x36"
    return b"".join((_octets(b"\x06", 16), re.escape(configuration), *flags))


def _sgx_extension() -> bytes:
    entries = (
        _octets(b"\x01", 16),
        _tcb(),
        _octets(b"\x03", 2),
        _octets(b"\x04", 6),
        _entry(b"\x05", b"\x0a", (r"[\0-\x02]", 1)),
        b"(?:" + _instance() + b")?",
    )
    value = _long("value", b"\x04", _long("entries", b"\x30", *entries))
    return _long("extension", b"\x30", re.escape(_element(6, _SGX)), value)


def _signed() -> bytes:
    """Return the pattern of the signed part."""
    time = rb"\x17\r\d{12}Z|\x18\x0f\d{14}Z"
    issuers = b"|".join(
        re.escape(_name(b"Intel SGX PCK %b CA" % kind)) for kind in (b"Platform", b"Processor")
    )
    extensions = (
        re.escape(_AUTHORITY_KEY_ID) + b".{20}",
        _group("points", rb"\x30.\x06\x03\x55\x1d\x1f\x04.\x30.\x30.\xa0.\xa0.\x86.")
        + _group("url", rb"[!-~]{1,%d}" % _LONGEST_URL),
        re.escape(_SUBJECT_KEY_ID) + b".{20}",
        re.escape(_CONSTRAINTS),
        _sgx_extension(),
    )
    return _long(
        "tbs",
        b"\x30",
        rb"\xa0\x03\x02\x01\x02",
        _group("serial", rb"\x02..{1,21}"),
        re.escape(_ECDSA_SHA256),
        _group("issuer", issuers),
        rb"\x30(?P<validity_size>.)(?P<start>%b)(?P<end>%b)" % (time, time),
        _group("subject", re.escape(_name(b"Intel SGX PCK Certificate"))),
        re.escape(_SPKI) + _group("point", rb"\x04.{64}"),
        _long("tagged", b"\xa3", _long("extensions", b"\x30", *extensions)),
    )


@cache
def _layout() -> "re.Pattern[bytes]":
    """Return the pattern of a certificate, compiled on first use, which takes some milliseconds."""
    signature = rb"\x03(?P<bits_size>.)\0" + _group("signature", rb"\x30.{7,71}")
    whole = _long("certificate", b"\x30", _signed(), re.escape(_ECDSA_SHA256), signature)
    return re.compile(whole, re.DOTALL)


def _has_right_lengths(m: "re.Match[bytes]") -> bool:
    """Return whether the lengths that the pattern leaves open are those of their contents."""
    for group in _LONG_GROUPS:
        start, end = m.span(group)
        if int.from_bytes(m.string[start + 2 : start + 4], "big") != end - start - 4:
            return False
    n = len(m["url"])
    oid = (0x30, n + 17, 6, 3, 0x55, 0x1D, 0x1F)
    points = (4, n + 10, 0x30, n + 8, 0x30, n + 6, 0xA0, n + 4, 0xA0, n + 2, 0x86, n)
    return (
        m["points"] == bytes((*oid, *points))
        and m["validity_size"][0] == len(m["start"]) + len(m["end"])
        and m["bits_size"][0] == len(m["signature"]) + 1
    )


def _is_positive(der: bytes, most: int) -> bool:
    """Return whether this is a positive INTEGER of at most `most` bytes in DER."""
    content = der[2:]
    value = int.from_bytes(content, "big")
    shortest = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return (
        value > 0
        and content == shortest
        and der[:2] == bytes((2, len(content)))
        and value.bit_length() <= 8 * most
    )


def _is_signature(der: bytes) -> bool:
    """Return whether a SEQUENCE has two positive integers and nothing else."""
    middle = 4 + der[3]
    integers = der[2:middle], der[middle:]
    return der[1] == len(der) - 2 and all(_is_positive(one, _LONGEST_SCALAR) for one in integers)


def _unix_time(der: bytes) -> int | None:
    """Return the Unix time of a UTCTime or GeneralizedTime; None if it is not a date of RFC 5280.

    Years before 2050 must be in a UTCTime (RFC 5280, 4.1.2.5).
    """
    text = der[2:-1]
    if der[0] == _UTC_TIME:
        text = (b"20" if text < b"50" else b"19") + text
    elif text < b"2050":
        return None
    month, day, hour, minute, second = (int(text[at : at + 2]) for at in (4, 6, 8, 10, 12))
    try:
        moment = datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    return (moment - _EPOCH) // _SECOND


def read_pck_certificate(der: bytes) -> PckCertificateFields | None:
    """Return the fields of a PCK certificate in DER, or None if its layout is not Intel's."""
    m = _layout().fullmatch(der) if type(der) is bytes else None
    if m is None or not _has_right_lengths(m) or not _is_signature(m["signature"]):
        return None
    start, end = _unix_time(m["start"]), _unix_time(m["end"])
    if start is None or end is None or not _is_positive(m["serial"], _LONGEST_SERIAL):
        return None
    return PckCertificateFields(
        m["serial"][2:].lstrip(b"\0"),
        m["issuer"],
        m["subject"],
        start,
        end,
        m["point"],
        m["tbs"],
        m["signature"],
        m["sgx_1"][-16:],
        bytes([m[name][-1] for name in _COMPONENTS]),
        int.from_bytes(m["sgx_2_17"][_PCESVN_AT:], "big"),
        m["sgx_2_18"][-16:],
        m["sgx_3"][-2:],
        m["sgx_4"][-6:],
        m["sgx_5"][-1],
        *_instance_of(m),
    )


def _instance_of(
    m: "re.Match[bytes]",
) -> "tuple[bytes | None, bool | None, bool | None, bool | None]":
    """Return the instance id and the flags, which certificates of the Processor CA lack."""
    if m["sgx_6"] is None:
        return None, None, None, None
    dynamic, cached, smt = (m[name][-1] == 0xFF for name in ("sgx_7_1", "sgx_7_2", "sgx_7_3"))
    return m["sgx_6"][-16:], dynamic, cached, smt
