"""The host's certificate table is read strictly."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.pem import encode_pem, split_pem
from attestkit.attestation.snp import SnpCertificates
from attestkit.errors import FormatError
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

# Byte order of RFC 4122, not that of Windows.
VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
VLEK = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
ASK = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")
ARK = bytes.fromhex("c0b406a4a80349529743" + "3fb6014cd0ae")
CRL = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea")
UNKNOWN = bytes(range(16))

DER = b"\x30\x03\x02\x01\x05"
OTHER = b"\x30\x03\x02\x01\x06"


def make_table(*entries: tuple[bytes, bytes], fill: int = 0) -> bytes:
    """Return a table in the host's layout: entries, zero entry, contents, fill."""
    at = 24 * (len(entries) + 1)
    head = b""
    for guid, content in entries:
        head += guid + struct.pack("<II", at, len(content))
        at += len(content)
    return head + bytes(24) + b"".join(content for _, content in entries) + bytes(fill)


def make_entry(guid: bytes, offset: int, length: int) -> bytes:
    """Return one entry with any offset and length."""
    return guid + struct.pack("<II", offset, length)


def rejection_of(content: bytes) -> tuple[str, int | None]:
    """Return the reason and the offset with which a table is rejected."""
    with pytest.raises(FormatError) as caught:
        SnpCertificates.parse(content)
    return caught.value.reason, caught.value.offset


def test_snp_certificates_assigns_each_guid_to_its_field() -> None:
    """The five known GUIDs are read in any order of contents."""
    contents = {guid: DER[:4] + bytes([n]) for n, guid in enumerate((CRL, ARK, ASK, VLEK, VCEK))}
    found = SnpCertificates.parse(make_table(*contents.items()))
    assert found == SnpCertificates(
        vcek=contents[VCEK],
        vlek=contents[VLEK],
        ask=contents[ASK],
        ark=contents[ARK],
        crl=contents[CRL],
    )
    assert repr(found) == "<SnpCertificates vcek, vlek, ask, ark, crl>"


@needs_shared
def test_snp_certificates_of_amd_chain_are_read() -> None:
    """A 16 KiB table with a DER VCEK and AMD's published PEM chain is read."""
    vcek = data("snp/virtee-sev/vcek_milan.der")
    ask, ark = split_pem(data("snp/virtee-sev/cert_chain_milan").decode())
    pem = encode_pem("CERTIFICATE", ask).encode()
    content = make_table((VCEK, vcek), (ASK, pem), (ARK, ark))
    found = SnpCertificates.parse(content + bytes(16384 - len(content)))
    assert (found.vcek, found.ask, found.ark) == (vcek, ask, ark)
    assert (found.vlek, found.crl, found.others) == (None, None, ())


@every_case("content", [b"", bytes(24), bytes(16384), make_table((VCEK, b""), (UNKNOWN, b""))])
def test_snp_certificates_of_empty_table_are_none(content: bytes) -> None:
    """No bytes, a zero entry, a zeroed buffer, and entries of length 0 mean no certificates."""
    assert SnpCertificates.parse(content) == SnpCertificates()
    assert repr(SnpCertificates()) == "<SnpCertificates none>"


def test_snp_certificates_keeps_unknown_guids() -> None:
    """Entries added by newer hosts are accepted and returned."""
    found = SnpCertificates.parse(make_table((UNKNOWN, b"any bytes"), (VCEK, DER)))
    assert found.vcek == DER
    assert found.others == (("00010203-0405-0607-0809-0a0b0c0d0e0f", b"any bytes"),)


def test_snp_certificates_uses_first_of_duplicate_guids() -> None:
    """The second entry is ignored, but must lie inside the table."""
    twice = make_table((VCEK, DER), (VCEK, OTHER), (UNKNOWN, b"1"), (UNKNOWN, b"2"))
    found = SnpCertificates.parse(twice)
    assert found.vcek == DER
    assert [content for _, content in found.others] == [b"1"]
    assert rejection_of(twice[:24] + make_entry(VCEK, 9000, 1) + twice[48:]) == (
        "truncated",
        24 + 20,
    )


def test_snp_certificates_with_contents_over_table_size_fails() -> None:
    """Overlapping entries cannot multiply the memory used."""
    end = 24 * 4
    content = b"".join(make_entry(bytes([n]) * 16, end, 100) for n in (1, 2, 3)) + bytes(24)
    assert rejection_of(content + bytes(100)) == ("too_large", 24 + 20)
    assert len(SnpCertificates.parse(content + bytes(204)).others) == 3


def test_snp_certificates_of_truncated_table_fails() -> None:
    """The error names the entry at which a truncated table ends."""
    whole = make_table((VCEK, DER), (ASK, OTHER))
    for size in range(1, 72):
        assert rejection_of(whole[:size]) == ("truncated", size // 24 * 24)
    for size in range(72, len(whole)):
        assert rejection_of(whole[:size]) == ("truncated", 20 if size < 77 else 24 + 20)


def test_snp_certificates_without_zero_entry_fails() -> None:
    """The entry array must end with an entry that is entirely zero."""
    assert rejection_of(make_entry(VCEK, 24, 0) * 3) == ("truncated", 72)
    assert rejection_of(make_entry(VCEK, 48, 0) + bytes(23) + b"\1") == ("truncated", 48)


@every_case(
    ("offset", "length", "expected"),
    [
        (0, 5, ("wrong_value", 16)),
        (24, 5, ("wrong_value", 16)),  # the zero entry
        (47, 5, ("wrong_value", 16)),  # its last byte
        (0, 0, ("wrong_value", 16)),
        (48, 6, ("truncated", 20)),
        (53, 1, ("truncated", 20)),
        (0xFFFFFFFF, 0xFFFFFFFF, ("truncated", 20)),
        (0xFFFFFFFF, 1, ("truncated", 20)),  # the sum is 2^32: zero in 32 bits
        (48, 0xFFFFFFD0, ("truncated", 20)),  # the same with a large length
    ],
)
def test_snp_certificates_with_offset_outside_contents_fails(
    offset: int, length: int, expected: tuple[str, int]
) -> None:
    """Contents lie after the entry array and inside the table, without 32-bit overflow."""
    assert rejection_of(make_entry(VCEK, offset, length) + bytes(24) + DER) == expected


def test_snp_certificates_at_edges_of_contents_are_read() -> None:
    """A certificate may start right after the array and end with the table; two may overlap."""
    found = SnpCertificates.parse(
        make_entry(VCEK, 72, 5) + make_entry(ASK, 72, 5) + bytes(24) + DER
    )
    assert found.vcek == found.ask == DER
    assert SnpCertificates.parse(make_entry(VCEK, 48, 5) + bytes(24) + DER).vcek == DER
    assert SnpCertificates.parse(make_entry(VCEK, 53, 0) + bytes(24) + DER).vcek is None


@every_case(
    ("content", "reason"),
    [
        (b"\x31\x00", "encoding"),
        (b"garbage", "encoding"),
        (b"\xff\xfe", "encoding"),
        (b"-----BEGIN CERTIFICATE-----\nMAMC\n", "encoding"),
        (b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "encoding"),
        (encode_pem("CERTIFICATE", b"").encode(), "encoding"),
        (encode_pem("CERTIFICATE", b"text").encode(), "encoding"),
        (encode_pem("CERTIFICATE", DER).encode() * 2, "too_many"),
    ],
)
def test_snp_certificates_of_other_encoding_fail(content: bytes, reason: str) -> None:
    """A certificate is DER or one PEM block; CRLs and unknown entries are kept unchanged."""
    assert rejection_of(make_table((ARK, DER), (VCEK, content))) == (reason, 72 + len(DER))
    found = SnpCertificates.parse(make_table((CRL, content), (UNKNOWN, content)))
    assert found.crl == found.others[0][1] == content


guids = st.sampled_from([VCEK, VLEK, ASK, ARK, CRL, UNKNOWN, bytes(16)])


@settings(max_examples=300)
@given(
    st.lists(st.tuples(guids, st.integers(0, 300), st.integers(0, 40)), max_size=6),
    st.binary(max_size=100),
)
def test_snp_certificates_of_arbitrary_entries_are_substrings(
    entries: list[tuple[bytes, int, int]], rest: bytes
) -> None:
    """For any entries, a field is a part of the table or of a PEM block in it."""
    content = b"".join(make_entry(*each) for each in entries) + bytes(24) + b"\x30" * 20 + rest
    try:
        found = SnpCertificates.parse(content)
    except FormatError:
        return
    for certificate in (found.vcek, found.vlek, found.ask, found.ark, found.crl):
        assert certificate is None or certificate in content[24 * len(entries) :]
