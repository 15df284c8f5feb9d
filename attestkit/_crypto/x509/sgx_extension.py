"""The SGX extension of a PCK certificate (OID 1.2.840.113741.1.13.1): its platform and TCB.

It is specified in "Intel SGX PCK Certificate and Certificate Revocation List Profile
Specification". Signatures are not verified here.
"""

from typing import Final, NamedTuple

from attestkit._crypto.der import BOOLEAN, INTEGER, OCTET_STRING, OID, SEQUENCE, DerReader
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_OID_DER: Final = bytes.fromhex("2a864886f84d010d01")
_ENUMERATED: Final = 0x0A
_LARGEST: Final = 0xFFFF  # bytes of an element
_PPID, _TCB, _PCEID, _FMSPC, _SGX_TYPE = b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"
_INSTANCE_ID, _CONFIGURATION = b"\x06", b"\x07"  # with the Platform CA only
_DYNAMIC_PLATFORM, _CACHED_KEYS, _SMT_ENABLED = b"\x07\x01", b"\x07\x02", b"\x07\x03"
_ENTRIES: Final = (5, 7)  # with the Processor CA, with the Platform CA
_FLAGS: Final = 3
_TCB_ENTRIES: Final = 18  # 16 components, PCESVN, CPUSVN
_PCESVN, _CPUSVN = b"\x02\x11", b"\x02\x12"


class PckExtension(NamedTuple):
    """Values of a PCK certificate's SGX extension: the platform and its TCB."""

    ppid: bytes  # 16 bytes
    components: bytes  # 16 TCB component SVNs, a byte each
    pcesvn: int  # 0 to 65535
    cpusvn: bytes  # 16 bytes
    pceid: bytes  # 2 bytes
    fmspc: bytes  # 6 bytes
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    # None in a certificate of the Processor CA.
    instance_id: bytes | None = None  # 16 bytes
    dynamic_platform: bool | None = None  # packages may be added to the platform
    cached_keys: bool | None = None  # Intel's registration service caches the platform's keys
    smt_enabled: bool | None = None  # simultaneous multithreading


def read_sgx_extension(der: bytes) -> PckExtension:
    """Parse the SGX extension of a PCK certificate in DER.

    Raises:
        FormatError: If `der` or its SGX extension is malformed, or the extension is missing.
    """
    value = read_certificate(der).extensions.get(SGX_EXTENSION)
    if value is None:
        message = f"certificate: no SGX extension ({SGX_EXTENSION}), so it is not a PCK certificate"
        raise FormatError(message, reason="missing")
    return parse_sgx_extension(value)


def parse_sgx_extension(value: bytes) -> PckExtension:
    """Parse the value of an SGX extension: the DER inside the extension's OCTET STRING.

    Raises:
        FormatError: If the value is malformed, has other than 5 or 7 entries, or one of its entries
            is missing, occurs twice, or has another type or size. The message names the entry.
    """
    entries = _entries("entries", _whole("value", value))
    tcb = _entries("TCB", _content("TCB", entries, _TCB, SEQUENCE))
    if len(tcb) != _TCB_ENTRIES:
        raise _bad("TCB", f"must have {_TCB_ENTRIES} entries, not {len(tcb)}", "wrong_size")
    found = PckExtension(
        ppid=_octets("PPID", entries, _PPID, 16),
        components=bytes(
            _integer(f"TCB component {n}", tcb, bytes([2, n]), 0xFF) for n in range(1, 17)
        ),
        pcesvn=_integer("PCESVN", tcb, _PCESVN, 0xFFFF),
        cpusvn=_octets("CPUSVN", tcb, _CPUSVN, 16),
        pceid=_octets("PCEID", entries, _PCEID, 2),
        fmspc=_octets("FMSPC", entries, _FMSPC, 6),
        sgx_type=_integer("SGX type", entries, _SGX_TYPE, 0xFF, _ENUMERATED),
    )
    if len(entries) not in _ENTRIES:
        message = f"must be 5 (Processor CA) or 7 (Platform CA), not {len(entries)}"
        raise _bad("entries", message, "wrong_size")
    if len(entries) == min(_ENTRIES):
        return found
    flags = _entries("configuration", _content("configuration", entries, _CONFIGURATION, SEQUENCE))
    if len(flags) != _FLAGS:
        raise _bad("configuration", f"must have {_FLAGS} entries, not {len(flags)}", "wrong_size")
    return found._replace(
        instance_id=_octets("instance ID", entries, _INSTANCE_ID, 16),
        dynamic_platform=_boolean("dynamic platform", flags, _DYNAMIC_PLATFORM),
        cached_keys=_boolean("cached keys", flags, _CACHED_KEYS),
        smt_enabled=_boolean("SMT enabled", flags, _SMT_ENABLED),
    )


def _bad(field: str, problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"SGX extension: {field}: {problem}", reason=reason)


class _Element(NamedTuple):
    """Tag and content of a DER element."""

    tag: int
    content: bytes


def _elements(field: str, der: bytes) -> list[_Element]:
    """Return the concatenated DER elements in `der`; `field` names it in errors."""
    found: list[_Element] = []
    reader = DerReader(der)
    try:
        while (tag := reader.tag()) is not None:
            found.append(_Element(tag, reader.content(tag)))
    except FormatError as error:
        raise _bad(field, "not DER", "syntax") from error
    if any(len(element.content) > _LARGEST for element in found):
        raise _bad(field, "not DER", "syntax")
    return found


def _whole(field: str, der: bytes) -> bytes:
    """Return the content of `der`, which must be one SEQUENCE; `field` names it in errors."""
    elements = _elements(field, der)
    if len(elements) != 1 or elements[0].tag != SEQUENCE:
        raise _bad(field, "must be one SEQUENCE", "wrong_type")
    return elements[0].content


def _entries(field: str, der: bytes) -> dict[bytes, _Element]:
    """Return the values of the entries in `der`, the content of a SEQUENCE, by OID suffix.

    The suffix is the end of an entry's OID after that of the SGX extension, in DER; `field` names
    the SEQUENCE in errors.
    """
    found: dict[bytes, _Element] = {}
    for pair in _elements(field, der):
        parts = _elements(field, pair.content) if pair.tag == SEQUENCE else []
        if len(parts) != 2 or parts[0].tag != OID or not parts[0].content.startswith(_OID_DER):
            raise _bad(field, "an entry is not an OID with a value", "wrong_type")
        name = parts[0].content[len(_OID_DER) :]
        if name in found:
            raise _bad(field, "an entry occurs twice", "duplicate")
        found[name] = parts[1]
    return found


def _content(field: str, entries: dict[bytes, _Element], name: bytes, tag: int) -> bytes:
    element = entries.get(name)
    if element is None:
        raise _bad(field, "missing", "missing")
    if element.tag != tag:
        raise _bad(field, f"DER tag must be {tag}, not {element.tag}", "wrong_type")
    return element.content


def _octets(field: str, entries: dict[bytes, _Element], name: bytes, size: int) -> bytes:
    content = _content(field, entries, name, OCTET_STRING)
    if len(content) != size:
        raise _bad(field, f"must have {size} bytes, not {len(content)}", "wrong_size")
    return content


def _boolean(field: str, entries: dict[bytes, _Element], name: bytes) -> bool:
    content = _content(field, entries, name, BOOLEAN)
    if content not in {b"\0", b"\xff"}:
        raise _bad(field, "must be 00 or FF", "wrong_value")
    return content == b"\xff"


def _integer(
    field: str, entries: dict[bytes, _Element], name: bytes, highest: int, tag: int = INTEGER
) -> int:
    content = _content(field, entries, name, tag)
    # A longer one is over `highest`, and too long for a message.
    value = _number(field, content) if len(content) < 9 else highest + 1
    if value > highest:
        raise _bad(field, f"must be 0 to {highest}, not {content[:9].hex()} (hex)", "wrong_value")
    return value


def _number(field: str, content: bytes) -> int:
    """Return the non-negative INTEGER with this content, big-endian without redundant zero octet.

    `field` names it in errors.
    """
    if (
        not content
        or content[0] & 0x80
        or (len(content) > 1 and content[0] == 0 and content[1] < 0x80)
    ):
        raise _bad(field, "must be a non-negative integer in DER", "wrong_value")
    return int.from_bytes(content, "big")
