"""A PCK certificate says which platform it is for; anything malformed in that is named."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final

import dcap_qvl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import armour
from attestkit._crypto.x509.sgx_extension import PckExtension, read_sgx_extension
from attestkit._crypto.x509.sgx_pki_writer import (
    Authority,
    SgxPlatform,
    Window,
    issue_certificate,
    sgx_extension,
)
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.errors import FormatError
from attestkit.quote import Quote
from tests.vectors import data, needs_shared

KEY: Final = P256Key.from_scalar((7).to_bytes(32, "big"))
PLATFORM: Final = SgxPlatform(
    ppid=bytes(range(16)),
    components=bytes([0, 1, 127, 128, 255, *range(11)]),
    pcesvn=0x80FF,
    cpusvn=bytes(range(32, 48)),
    pceid=b"\x01\x02",
    fmspc=bytes.fromhex("00a067110000"),
    sgx_type=2,
    instance_id=bytes(16),
    dynamic_platform=True,
    cached_keys=False,
    smt_enabled=True,
)
GOOD: Final = sgx_extension(PLATFORM)


def certificate(extension: bytes | None) -> bytes:
    """Return a certificate with that extension."""
    start = datetime(2020, 1, 1, tzinfo=timezone.utc)
    end = datetime(2049, 1, 1, tzinfo=timezone.utc)
    return issue_certificate(
        Authority("Intel SGX PCK Certificate", KEY),
        Authority("Intel SGX PCK Platform CA", KEY),
        serial=1,
        validity=Window(start, end),
        crl_url="https://pcs.attestkit.invalid/x",
        path_length=None,
        sgx=extension,
    )


def test_every_field_is_read() -> None:
    """All fields come back, also numbers with a sign octet before them."""
    read = read_sgx_extension(certificate(GOOD))
    fields = PLATFORM._asdict()
    assert read == PckExtension(**{name: fields[name] for name in PckExtension._fields})


def test_the_simulators_certificates_are_read() -> None:
    """The simulator's PCK certificate says what its configuration does."""
    pki = SimulatedPki(bytes(32))
    read = read_sgx_extension(pki.platform("x").pck_der)
    assert (read.fmspc, read.pceid, read.pcesvn) == (pki.config.fmspc, pki.config.pceid, 13)
    assert read.components == read.cpusvn == pki.config.cpusvn
    assert read.ppid == pki.platform("x").ppid


@needs_shared
@pytest.mark.parametrize(
    "name",
    [
        "dcap-qvl/sgx_quote",
        "dcap-qvl/tdx_quote",
        "dcap-qvl/tdx_quote_outdated",
        "go-tdx-guest/cos-113-tdx-quote.dat",
        "cc-trusted-api/quote.bin",
    ],
)
def test_intels_own_certificates_are_read(name: str) -> None:
    """PCK certificates from hardware say what dcap-qvl reads in them."""
    der = Quote.parse(data(f"quotes/{name}")).pck_chain[0]
    read = read_sgx_extension(der)
    theirs = dcap_qvl.parse_pck_extension_from_pem(armour("CERTIFICATE", der).encode())
    assert read.components == read.cpusvn == theirs.cpu_svn
    assert (read.ppid, read.fmspc, read.pceid) == (theirs.ppid, theirs.fmspc, theirs.pce_id)
    assert (read.pcesvn, read.sgx_type) == (theirs.pce_svn, theirs.sgx_type)


@needs_shared
def test_an_intel_certificate_field_by_field() -> None:
    """The fields of one certificate from hardware, as openssl's asn1parse shows them."""
    assert read_sgx_extension(Quote.parse(data("quotes/dcap-qvl/sgx_quote")).pck_chain[0]) == (
        bytes.fromhex("d04ec06d4e6d92dc90d0ad3cf5ee2ddf"),
        bytes.fromhex("0b0b0202ff01") + bytes(10),
        13,
        bytes.fromhex("0b0b0202ff01") + bytes(10),
        bytes(2),
        bytes.fromhex("00a067110000"),
        0,
    )


def test_other_certificates_are_refused() -> None:
    """A certificate without the extension, and what is no certificate, are refused."""
    with pytest.raises(FormatError, match="has no SGX extension"):
        read_sgx_extension(certificate(None))
    with pytest.raises(FormatError, match="has no SGX extension"):
        read_sgx_extension(SimulatedPki(bytes(32)).root_der)
    with pytest.raises(FormatError):
        read_sgx_extension(b"\x30\x00")


def tlv(tag: int, content: bytes) -> bytes:
    """Return a DER element, of 64 KiB at most."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    head = [0x81, size] if size < 0x100 else [0x82, *size.to_bytes(2, "big")]
    return bytes([tag, *head]) + content


def entry(name: bytes, value: bytes) -> bytes:
    """Return one pair of the extension."""
    oid = bytes.fromhex("2a864886f84d010d01") + name
    return tlv(0x30, tlv(0x06, oid) + value)


TCB: Final = [
    *(entry(bytes([2, n]), tlv(0x02, bytes([n]))) for n in range(1, 18)),
    entry(b"\x02\x12", tlv(0x04, bytes(16))),
]
ENTRIES: Final = {
    1: tlv(0x04, bytes(16)),
    2: tlv(0x30, b"".join(TCB)),
    3: tlv(0x04, bytes(2)),
    4: tlv(0x04, bytes(6)),
    5: tlv(0x0A, b"\x01"),
}


def built(**changes: bytes | None) -> bytes:
    """Return an extension of the five entries, with changes to `e1` to `e5`."""
    values = {**{f"e{n}": value for n, value in ENTRIES.items()}, **changes}
    pairs = (entry(bytes([int(name[1:])]), v) for name, v in values.items() if v is not None)
    return tlv(0x30, b"".join(pairs))


def tcb(change: Callable[[list[bytes]], object]) -> bytes:
    """Return an extension whose TCB entries were changed in place."""
    entries = list(TCB)
    change(entries)
    return built(e2=tlv(0x30, b"".join(entries)))


def put(number: int, value: bytes) -> bytes:
    """Return an extension whose TCB entry of that number has that value."""
    return tcb(lambda of: of.__setitem__(number - 1, entry(bytes([2, number]), value)))


def test_five_entries_are_enough() -> None:
    """Certificates of the Processor CA have neither instance id nor configuration."""
    read = read_sgx_extension(certificate(built()))
    assert read.components == bytes(range(1, 17))
    assert (read.pcesvn, read.sgx_type) == (17, 1)


@pytest.mark.parametrize(
    ("extension", "told"),
    [
        (built(e1=None), "the PPID is missing"),
        (built(e2=None), "the TCB is missing"),
        (built(e3=None), "the PCEID is missing"),
        (built(e4=None), "the FMSPC is missing"),
        (built(e5=None), "the SGX type is missing"),
        (built(e1=tlv(0x04, bytes(15))), "the PPID has 15 bytes, not 16"),
        (built(e3=tlv(0x04, bytes(3))), "the PCEID has 3 bytes, not 2"),
        (built(e4=tlv(0x04, bytes(5))), "the FMSPC has 5 bytes, not 6"),
        (built(e4=tlv(0x02, bytes(6))), "the FMSPC has the DER tag 2, not 4"),
        (built(e5=tlv(0x02, b"\x01")), "the SGX type has the DER tag 2, not 10"),
        (built(e5=tlv(0x0A, b"")), "the SGX type is not a number"),
        (built(e5=tlv(0x0A, b"\x00\x01")), "the SGX type is not a number"),
        (tcb(lambda of: of.pop()), "the TCB has 17 entries, not 18"),
        (tcb(lambda of: of.append(entry(b"\x02\x13", b"\x05\x00"))), "19 entries, not 18"),
        (tcb(lambda of: of.__setitem__(0, of[1])), "the TCB has an entry twice"),
        (tcb(lambda of: of.__setitem__(0, tlv(0x05, b""))), "an entry of the TCB is not a name"),
        (put(3, tlv(0x02, b"\x01\x00")), "TCB component 3 is 256, over 255"),
        (put(3, tlv(0x02, b"\x80")), "TCB component 3 is not a number"),
        (put(3, tlv(0x02, b"\x00\x7f")), "TCB component 3 is not a number"),
        (put(17, tlv(0x02, b"\x01\x00\x00")), "the PCESVN is 65536, over 65535"),
        (put(18, tlv(0x04, bytes(17))), "the CPUSVN has 17 bytes, not 16"),
        (put(18, tlv(0x05, b"")), "the CPUSVN has the DER tag 5, not 4"),
        (built() + b"\x05\x00", "is not one SEQUENCE"),
        (b"", "is not one SEQUENCE"),
        (b"\x31\x00", "is not one SEQUENCE"),
        (b"\x30\x80\x00\x00", "is not DER"),
        (b"\x30\x81\x01\x00", "is not DER"),  # a length in more octets than it needs
        (b"\x30\x82\x00\x81" + bytes(129), "is not DER"),
        (b"\x30\x83\x00\x00\x00", "is not DER"),
        (tlv(0x30, tlv(0x30, tlv(0x06, b"\x2a\x03\x01") + b"\x05\x00")), "is not a name"),
    ],
)
def test_what_is_malformed_is_named(extension: bytes, told: str) -> None:
    """A missing, doubled, oversized or mistyped entry is refused, and the text names it."""
    with pytest.raises(FormatError, match=told):
        read_sgx_extension(certificate(extension))


def test_the_extension_cut_anywhere_is_refused() -> None:
    """An extension cut at any length is refused."""
    for size in range(len(GOOD)):
        with pytest.raises(FormatError):
            read_sgx_extension(certificate(GOOD[:size]))


@settings(deadline=None, max_examples=50)  # machines are busy
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_raises_our_errors_only(offset: int, flip: int) -> None:
    """Any byte changed gives a FormatError or other values, never another exception."""
    changed = bytearray(GOOD)
    changed[offset] ^= flip
    try:
        read = read_sgx_extension(certificate(bytes(changed)))
    except FormatError:
        return
    assert [len(read.ppid), len(read.components), len(read.cpusvn)] == [16, 16, 16]
