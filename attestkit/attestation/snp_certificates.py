"""The certificate table that an SEV-SNP host hands to its guest.

Its layout is in the GHCB specification, under SNP Extended Guest Request: entries of 24 bytes
(GUID, offset, length; little-endian), a zero entry that ends them, and behind it the certificates.
All of it is the host's word. Parsing says where things are; whoever believes a certificate has to
follow its chain to one of AMD's roots first.
"""

from struct import Struct
from typing import Final, NamedTuple

from attestkit._crypto.pem import split_pem
from attestkit.errors import FormatError

__all__ = ["SnpCertificates"]

_ENTRY: Final = Struct("<16sII")
_END: Final = bytes(_ENTRY.size)

# GUIDs are in RFC 4122 byte order, as printed.
_FIELDS: Final = {
    "63da758d-e664-4564-adc5-f4b93be8accd": "vcek",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "vlek",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ask",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ark",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "crl",
}


class SnpCertificates(NamedTuple):
    """What the host says the report is signed by; certificates in DER, None where it has none."""

    vcek: bytes | None = None  # the chip's key
    vlek: bytes | None = None  # the cloud provider's key
    ask: bytes | None = None  # signs a VCEK; of a VLEK's chain it is the ASVK
    ark: bytes | None = None  # AMD's root, as the host has it
    crl: bytes | None = None  # as it came, DER or PEM
    others: tuple[tuple[str, bytes], ...] = ()  # GUID and content, as they came

    @classmethod
    def parse(cls, data: bytes) -> "SnpCertificates":
        """Read a table; no bytes at all are one without certificates.

        Of several entries with one GUID the first counts. Certificates may be DER or PEM.

        Raises:
            FormatError: no zero entry ends the table, an entry points into it or behind `data`,
                all together are longer than `data`, or a certificate is neither DER nor PEM.
        """
        fields: dict[str, bytes] = {}
        others: dict[str, bytes] = {}
        for at, guid, content in _entries(data):
            name = _FIELDS.get(guid)
            if name is None:
                others.setdefault(guid, content)
            elif name not in fields:
                fields[name] = content if name == "crl" else _der(content, name, at)
        return cls(**fields, others=tuple(others.items()))

    def __repr__(self) -> str:
        there = [name for name in _FIELDS.values() if getattr(self, name) is not None]
        return f"<SnpCertificates {', '.join(there) or 'none'}>"


def _entries(data: bytes) -> list[tuple[int, str, bytes]]:
    """Return where each content is, its GUID and its bytes; entries without a byte are left out."""
    end = 0
    entries: list[tuple[int, bytes, int, int]] = []
    while data:  # so an empty table needs no end
        entry = data[end : end + _ENTRY.size]
        if len(entry) < _ENTRY.size:
            raise _bad("end", "no zero entry ends the certificate table", end)
        if entry == _END:
            break
        entries.append((end, *_ENTRY.unpack(entry)))
        end += _ENTRY.size
    end += _ENTRY.size
    found: list[tuple[int, str, bytes]] = []
    left = len(data)  # contents may overlap, but not grow into many times what came
    for at, guid, offset, length in entries:
        if offset < end:
            raise _bad("offset", "a certificate begins inside the table of them", at + 16)
        if offset + length > len(data):
            raise _bad("length", f"a certificate ends behind the {len(data)} bytes", at + 20)
        if (left := left - length) < 0:
            raise _bad("length", f"all together are longer than the {len(data)} bytes", at + 20)
        if length:
            found.append((offset, _guid(guid), data[offset : offset + length]))
    return found


def _guid(data: bytes) -> str:
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _der(content: bytes, name: str, at: int) -> bytes:
    """Return a certificate in DER, where it begins with the tag of a SEQUENCE, as no PEM does."""
    if content[0] == 0x30:
        return content
    try:
        found = split_pem(content.decode("ascii"))
    except (UnicodeDecodeError, FormatError) as error:
        raise _bad("certificate", f"the {name.upper()} is neither DER nor PEM", at) from error
    if not found[0].startswith(b"\x30"):
        raise _bad("certificate", f"the {name.upper()} is neither DER nor PEM", at)
    if len(found) != 1:
        raise _bad("certificate", f"{len(found)} certificates in place of the {name.upper()}", at)
    return found[0]


def _bad(reason: str, message: str, offset: int) -> FormatError:
    return FormatError(message, offset=offset, reason=reason)
