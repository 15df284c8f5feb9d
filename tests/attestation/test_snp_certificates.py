"""The host's certificate table says what its bytes say, and whatever else it is, it is refused."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.pem import armour, split_pem
from attestkit.attestation.snp_certificates import SnpCertificates
from attestkit.errors import FormatError
from tests.vectors import data, needs_shared

# As linux-tee-abi.md 6.3 has them, written out byte by byte: the order of RFC 4122, not Windows's.
VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
VLEK = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
ASK = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")
ARK = bytes.fromhex("c0b406a4a80349529743" + "3fb6014cd0ae")
CRL = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea")
STRANGE = bytes(range(16))

DER = b"\x30\x03\x02\x01\x05"
OTHER = b"\x30\x03\x02\x01\x06"


def table(*entries: tuple[bytes, bytes], fill: int = 0) -> bytes:
    """Return a table as a host lays it out: entries, the zero entry, contents, a fill."""
    at = 24 * (len(entries) + 1)
    head = b""
    for guid, content in entries:
        head += guid + struct.pack("<II", at, len(content))
        at += len(content)
    return head + bytes(24) + b"".join(content for _, content in entries) + bytes(fill)


def entry(guid: bytes, offset: int, length: int) -> bytes:
    """Return one entry, which may point anywhere."""
    return guid + struct.pack("<II", offset, length)


def refused(content: bytes) -> tuple[str, int | None]:
    """Return reason and byte with which a table is refused."""
    with pytest.raises(FormatError) as caught:
        SnpCertificates.parse(content)
    return caught.value.reason, caught.value.offset


def test_each_guid_has_its_field() -> None:
    """The five known GUIDs, contents in another order than the fields."""
    contents = {guid: DER[:4] + bytes([n]) for n, guid in enumerate((CRL, ARK, ASK, VLEK, VCEK))}
    found = SnpCertificates.parse(table(*contents.items()))
    assert found == SnpCertificates(
        vcek=contents[VCEK],
        vlek=contents[VLEK],
        ask=contents[ASK],
        ark=contents[ARK],
        crl=contents[CRL],
    )
    assert repr(found) == "<SnpCertificates vcek, vlek, ask, ark, crl>"


@needs_shared
def test_certificates_of_a_real_chain() -> None:
    """A 16 KiB table with the VCEK in DER, and the chain in PEM as AMD publishes it."""
    vcek = data("snp/virtee-sev/vcek_milan.der")
    ask, ark = split_pem(data("snp/virtee-sev/cert_chain_milan").decode())
    pem = armour("CERTIFICATE", ask).encode()
    content = table((VCEK, vcek), (ASK, pem), (ARK, ark))
    found = SnpCertificates.parse(content + bytes(16384 - len(content)))
    assert (found.vcek, found.ask, found.ark) == (vcek, ask, ark)
    assert (found.vlek, found.crl, found.others) == (None, None, ())


@pytest.mark.parametrize("content", [b"", bytes(24), bytes(16384)])
def test_a_host_without_certificates(content: bytes) -> None:
    """No bytes, a zero entry alone, a zeroed buffer: no certificates, no error."""
    assert SnpCertificates.parse(content) == SnpCertificates()
    assert repr(SnpCertificates()) == "<SnpCertificates none>"


def test_an_entry_without_a_byte_is_not_there() -> None:
    """A host may name what it does not have."""
    assert SnpCertificates.parse(table((VCEK, b""), (STRANGE, b""))) == SnpCertificates()


def test_strange_guids_are_kept() -> None:
    """What a newer host adds does no harm, and can be looked at."""
    found = SnpCertificates.parse(table((STRANGE, b"any bytes"), (VCEK, DER)))
    assert found.vcek == DER
    assert found.others == (("00010203-0405-0607-0809-0a0b0c0d0e0f", b"any bytes"),)


def test_the_first_of_two_counts() -> None:
    """A GUID is used once; the second entry still has to be inside the table's bytes."""
    twice = table((VCEK, DER), (VCEK, OTHER), (STRANGE, b"1"), (STRANGE, b"2"))
    found = SnpCertificates.parse(twice)
    assert found.vcek == DER
    assert [content for _, content in found.others] == [b"1"]
    assert refused(twice[:24] + entry(VCEK, 9000, 1) + twice[48:]) == ("length", 24 + 20)


def test_two_entries_may_share_bytes() -> None:
    """Only the array is protected: contents are untrusted wherever they lie."""
    content = entry(VCEK, 72, 5) + entry(ASK, 72, 5) + bytes(24) + DER
    found = SnpCertificates.parse(content)
    assert found.vcek == found.ask == DER


def test_all_contents_together_are_no_longer_than_the_table() -> None:
    """Entries that name the same bytes again and again do not fill the memory."""
    end = 24 * 4
    content = b"".join(entry(bytes([n]) * 16, end, 100) for n in (1, 2, 3)) + bytes(24)
    assert refused(content + bytes(100)) == ("length", 24 + 20)
    assert len(SnpCertificates.parse(content + bytes(204)).others) == 3


def test_every_cut_is_refused() -> None:
    """A table that ends early is refused, and the error says which entry ended it."""
    whole = table((VCEK, DER), (ASK, OTHER))
    for size in range(1, 72):
        assert refused(whole[:size]) == ("end", size // 24 * 24)
    for size in range(72, len(whole)):
        assert refused(whole[:size]) == ("length", 20 if size < 77 else 24 + 20)


def test_there_must_be_an_end() -> None:
    """Entries up to the last byte, and a last entry that is zero but for one bit."""
    assert refused(entry(VCEK, 24, 0) * 3) == ("end", 72)
    assert refused(entry(VCEK, 48, 0) + bytes(23) + b"\1") == ("end", 48)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 5, ("offset", 16)),
        (24, 5, ("offset", 16)),  # the zero entry
        (47, 5, ("offset", 16)),  # its last byte
        (0, 0, ("offset", 16)),
        (48, 6, ("length", 20)),
        (53, 1, ("length", 20)),
        (0xFFFFFFFF, 0xFFFFFFFF, ("length", 20)),
        (0xFFFFFFFF, 1, ("length", 20)),  # 2^32 in all, zero in 32 bits
        (48, 0xFFFFFFD0, ("length", 20)),  # the same from the other side
    ],
)
def test_where_a_certificate_cannot_be(offset: int, length: int, expected: tuple[str, int]) -> None:
    """Neither inside the array nor behind the bytes, whatever a 32-bit sum would say."""
    assert refused(entry(VCEK, offset, length) + bytes(24) + DER) == expected


def test_the_very_edges_are_inside() -> None:
    """A certificate may begin right behind the array and end with the bytes."""
    assert SnpCertificates.parse(entry(VCEK, 48, 5) + bytes(24) + DER).vcek == DER
    assert SnpCertificates.parse(entry(VCEK, 53, 0) + bytes(24) + DER).vcek is None


@pytest.mark.parametrize(
    "content",
    [
        b"\x31\x00",
        b"garbage",
        b"\xff\xfe",
        b"-----BEGIN CERTIFICATE-----\nMAMC\n",
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        armour("CERTIFICATE", b"").encode(),
        armour("CERTIFICATE", b"text").encode(),
        armour("CERTIFICATE", DER).encode() * 2,
    ],
)
def test_a_certificate_is_der_or_one_pem(content: bytes) -> None:
    """Anything else is refused at its own offset; a CRL and strangers are kept as they came."""
    assert refused(table((ARK, DER), (VCEK, content))) == ("certificate", 72 + len(DER))
    found = SnpCertificates.parse(table((CRL, content), (STRANGE, content)))
    assert found.crl == found.others[0][1] == content


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    """Any bytes give certificates or a FormatError."""
    offset: int | None = 0
    try:
        SnpCertificates.parse(content)
    except FormatError as error:
        offset = error.offset
    assert offset is not None
    assert 0 <= offset <= len(content)


guids = st.sampled_from([VCEK, VLEK, ASK, ARK, CRL, STRANGE, bytes(16)])


@settings(max_examples=300)
@given(
    st.lists(st.tuples(guids, st.integers(0, 300), st.integers(0, 40)), max_size=6),
    st.binary(max_size=100),
)
def test_any_entries(entries: list[tuple[bytes, int, int]], rest: bytes) -> None:
    """Whatever the entries say, a field is bytes of the table, or those of a PEM in it."""
    content = b"".join(entry(*each) for each in entries) + bytes(24) + b"\x30" * 20 + rest
    try:
        found = SnpCertificates.parse(content)
    except FormatError:
        return
    for certificate in (found.vcek, found.vlek, found.ask, found.ark, found.crl):
        assert certificate is None or certificate in content[24 * len(entries) :]
