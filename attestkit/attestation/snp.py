"""Certificate table of an SEV-SNP host.

Layout: GHCB specification, SNP Extended Guest Request. Entries of 24 bytes (GUID, offset, length;
little-endian) end with a zero entry; the certificates follow. The host is not trusted: verify the
chain of a certificate up to a root of AMD before using it.
"""

from struct import Struct
from typing import Final, NamedTuple

from attestkit._crypto.pem import split_pem
from attestkit._outcomes.reasons import FormatReason
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
    """Certificates, in DER, of the table that a host provides (GHCB); None if not in it."""

    vcek: bytes | None = None  # Versioned Chip Endorsement Key
    vlek: bytes | None = None  # Versioned Loaded Endorsement Key, of a cloud provider
    ask: bytes | None = None  # AMD SEV Signing Key, or the ASVK for a VLEK
    ark: bytes | None = None  # AMD Root Key, as the host has it
    crl: bytes | None = None  # DER or PEM, unchanged
    others: tuple[tuple[str, bytes], ...] = ()  # GUID and content of unknown entries

    @classmethod
    def parse(cls, data: bytes) -> "SnpCertificates":
        """Parse a table; empty `data` is a table without certificates.

        Certificates may be DER or PEM. The first of several entries with one GUID is used.

        Raises:
            FormatError: If the table has no zero entry, an entry points into the table or beyond
                `data`, the contents together are longer than `data`, or a certificate is neither
                DER nor PEM, or more than one in PEM.
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
        present = [name for name in _FIELDS.values() if getattr(self, name) is not None]
        return f"<SnpCertificates {', '.join(present) or 'none'}>"


def _entries(data: bytes) -> list[tuple[int, str, bytes]]:
    """Return offset in `data`, GUID and content of each table entry that is not empty."""
    end = 0
    entries: list[tuple[int, bytes, int, int]] = []
    while data:  # an empty table needs no zero entry
        entry = data[end : end + _ENTRY.size]
        if len(entry) < _ENTRY.size:
            raise _bad("truncated: must end with a zero entry", "truncated", end)
        if entry == _END:
            break
        entries.append((end, *_ENTRY.unpack(entry)))
        end += _ENTRY.size
    end += _ENTRY.size
    found: list[tuple[int, str, bytes]] = []
    left = len(data)  # contents may overlap, but copies must not multiply the input
    for at, guid, offset, length in entries:
        if offset < end:
            raise _bad(f"certificate at {offset} overlaps the table", "wrong_value", at + 16)
        if offset + length > len(data):
            raise _bad(f"a certificate ends beyond its {len(data)} bytes", "truncated", at + 20)
        if (left := left - length) < 0:
            raise _bad(f"certificates exceed {len(data)} bytes in all", "too_large", at + 20)
        if length:
            found.append((offset, _guid(guid), data[offset : offset + length]))
    return found


def _guid(data: bytes) -> str:
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _der(content: bytes, name: str, at: int) -> bytes:
    """Return the DER of an entry's `content`, one certificate in DER or PEM.

    `name` is the certificate in errors, and `at` the content's offset in the table.
    """
    if content[0] == 0x30:
        return content
    try:
        found = split_pem(content.decode("ascii"))
    except (UnicodeDecodeError, FormatError) as error:
        message = f"{name.upper()} certificate: neither DER nor PEM"
        raise FormatError(message, reason="encoding", offset=at) from error
    if not found[0].startswith(b"\x30"):
        raise FormatError(f"{name.upper()}: neither DER nor PEM", reason="encoding", offset=at)
    if len(found) != 1:
        message = f"{name.upper()} certificate: must be one certificate, not {len(found)}"
        raise FormatError(message, reason="too_many", offset=at)
    return found[0]


def _bad(problem: str, reason: FormatReason, offset: int | None = None) -> FormatError:
    return FormatError(f"SNP certificate table: {problem}", reason=reason, offset=offset)
