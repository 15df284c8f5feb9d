"""What a PCK certificate says of its platform: the SGX extension, OID 1.2.840.113741.1.13.1.

The profile is that of "Intel SGX PCK Certificate and Certificate Revocation List Profile
Specification"; simulated-pki.md, section 5, lists the entries. Nothing is verified here.
"""

from typing import Final, NamedTuple

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.errors import FormatError

__all__ = ["PckExtension", "read_sgx_extension"]

_OID_TEXT: Final = "1.2.840.113741.1.13.1"
_OID_DER: Final = bytes.fromhex("2a864886f84d010d01")
_INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x02, 0x04, 0x06, 0x0A, 0x30
_PPID, _TCB, _PCEID, _FMSPC, _SGX_TYPE = b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"
_TCB_ENTRIES: Final = 18  # 16 components, PCESVN, CPUSVN
_PCESVN, _CPUSVN = b"\x02\x11", b"\x02\x12"


class PckExtension(NamedTuple):
    """The platform of a PCK certificate."""

    ppid: bytes  # 16 bytes
    components: bytes  # the 16 TCB component SVNs, a byte each
    pcesvn: int  # 0..65535
    cpusvn: bytes  # 16 bytes
    pceid: bytes  # 2 bytes
    fmspc: bytes  # 6 bytes
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity


def read_sgx_extension(der: bytes) -> PckExtension:
    """Return the SGX extension of a PCK certificate in DER, but for what follows the SGX type.

    Raises:
        FormatError: `der` is no certificate, or has no such extension, or a malformed one: an entry
            is missing, twice there, or of another type or size. The text names the entry.
    """
    value = read_certificate(der).extensions.get(_OID_TEXT)
    if value is None:
        raise FormatError(
            f"the certificate has no SGX extension ({_OID_TEXT}): it is not a PCK certificate"
        )
    entries = _entries("the SGX extension", _whole("the SGX extension", value))
    tcb = _entries("the TCB", _content("the TCB", entries, _TCB, _SEQUENCE))
    if len(tcb) != _TCB_ENTRIES:
        raise FormatError(f"SGX extension: the TCB has {len(tcb)} entries, not {_TCB_ENTRIES}")
    return PckExtension(
        ppid=_octets("the PPID", entries, _PPID, 16),
        components=bytes(
            _integer(f"TCB component {n}", tcb, bytes([2, n]), 0xFF) for n in range(1, 17)
        ),
        pcesvn=_integer("the PCESVN", tcb, _PCESVN, 0xFFFF),
        cpusvn=_octets("the CPUSVN", tcb, _CPUSVN, 16),
        pceid=_octets("the PCEID", entries, _PCEID, 2),
        fmspc=_octets("the FMSPC", entries, _FMSPC, 6),
        sgx_type=_number("the SGX type", _content("the SGX type", entries, _SGX_TYPE, _ENUMERATED)),
    )


class _Element(NamedTuple):
    """A DER element without its tag and length."""

    tag: int
    content: bytes


def _elements(what: str, der: bytes) -> list[_Element]:
    """Return the DER elements that follow each other in `der`, to its end."""
    found: list[_Element] = []
    at = 0
    while at < len(der):
        head = der[at : at + 4]
        width = head[1] - 0x80 if len(head) > 1 and head[1] > 0x80 else 0
        # Two octets of length are 64 KiB, more than any certificate; 0x80 alone is not DER.
        if width > 2 or len(head) < 2 + width or head[1] == 0x80:
            raise FormatError(f"SGX extension: {what} is not DER")
        size = int.from_bytes(head[2 : 2 + width], "big") if width else head[1]
        start = at + 2 + width
        if start + size > len(der) or (width and size < (0x80, 0x100)[width - 1]):
            raise FormatError(f"SGX extension: {what} is not DER")
        found.append(_Element(head[0], der[start : start + size]))
        at = start + size
    return found


def _whole(what: str, der: bytes) -> bytes:
    """Return the content of the one SEQUENCE that `der` is."""
    elements = _elements(what, der)
    if len(elements) != 1 or elements[0].tag != _SEQUENCE:
        raise FormatError(f"SGX extension: {what} is not one SEQUENCE")
    return elements[0].content


def _entries(what: str, der: bytes) -> dict[bytes, _Element]:
    """Return the pairs in `der`, the content of a SEQUENCE, by what continues Intel's OID."""
    found: dict[bytes, _Element] = {}
    for pair in _elements(what, der):
        parts = _elements(what, pair.content) if pair.tag == _SEQUENCE else []
        if len(parts) != 2 or parts[0].tag != _OID or not parts[0].content.startswith(_OID_DER):
            raise FormatError(f"SGX extension: an entry of {what} is not a name with its value")
        name = parts[0].content[len(_OID_DER) :]
        if name in found:
            raise FormatError(f"SGX extension: {what} has an entry twice")
        found[name] = parts[1]
    return found


def _content(what: str, entries: dict[bytes, _Element], name: bytes, tag: int) -> bytes:
    element = entries.get(name)
    if element is None:
        raise FormatError(f"SGX extension: {what} is missing")
    if element.tag != tag:
        raise FormatError(f"SGX extension: {what} has the DER tag {element.tag}, not {tag}")
    return element.content


def _octets(what: str, entries: dict[bytes, _Element], name: bytes, size: int) -> bytes:
    content = _content(what, entries, name, _OCTETS)
    if len(content) != size:
        raise FormatError(f"SGX extension: {what} has {len(content)} bytes, not {size}")
    return content


def _integer(what: str, entries: dict[bytes, _Element], name: bytes, highest: int) -> int:
    value = _number(what, _content(what, entries, name, _INTEGER))
    if value > highest:
        raise FormatError(f"SGX extension: {what} is {value}, over {highest}")
    return value


def _number(what: str, content: bytes) -> int:
    """Return a number that is not negative; DER has no superfluous zero octet before it."""
    if (
        not content
        or content[0] & 0x80
        or (len(content) > 1 and content[0] == 0 and content[1] < 0x80)
    ):
        raise FormatError(f"SGX extension: {what} is not a number of DER")
    return int.from_bytes(content, "big")
