"""The SGX extension identifies the platform of a PCK certificate; malformed entries are named."""

from collections.abc import Callable
from typing import Final

import dcap_qvl
import pytest

from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.sgx_extension import PckExtension, read_sgx_extension
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.errors import FormatError
from attestkit.quote import Quote
from tests.crypto.x509.test_sgx_certificates import PLATFORM, make_certificate
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared


def test_sgx_extension_returns_every_field() -> None:
    """All fields are returned, including numbers with a leading zero octet."""
    read = read_sgx_extension(make_certificate())
    fields = PLATFORM._asdict()
    assert read == PckExtension(**{name: fields[name] for name in PckExtension._fields})


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
def test_sgx_extension_of_hardware_matches_dcap_qvl(name: str) -> None:
    """PCK certificates of hardware have the values that dcap-qvl reads."""
    der = Quote.parse(data(f"quotes/{name}")).pck_chain[0]
    read = read_sgx_extension(der)
    expected = dcap_qvl.parse_pck_extension_from_pem(encode_pem("CERTIFICATE", der).encode())
    assert read.components == read.cpusvn == expected.cpu_svn
    assert (read.ppid, read.fmspc, read.pceid) == (expected.ppid, expected.fmspc, expected.pce_id)
    assert (read.pcesvn, read.sgx_type) == (expected.pce_svn, expected.sgx_type)


def test_sgx_extension_of_other_certificate_fails() -> None:
    """A certificate without the extension, and other bytes, are rejected."""
    with raises(FormatError, "missing"):
        read_sgx_extension(make_certificate(sgx=None))
    with raises(FormatError, "missing"):
        read_sgx_extension(SimulatedPki(bytes(32)).root_der)
    with raises(FormatError, "syntax"):
        read_sgx_extension(b"\x30\x00")


def tlv(tag: int, content: bytes) -> bytes:
    """Return a DER element of at most 64 KiB."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    head = [0x81, size] if size < 0x100 else [0x82, *size.to_bytes(2, "big")]
    return bytes([tag, *head]) + content


def make_entry(name: bytes, value: bytes) -> bytes:
    """Return one pair of the extension."""
    oid = bytes.fromhex("2a864886f84d010d01") + name
    return tlv(0x30, tlv(0x06, oid) + value)


TCB: Final = [
    *(make_entry(bytes([2, n]), tlv(0x02, bytes([n]))) for n in range(1, 18)),
    make_entry(b"\x02\x12", tlv(0x04, bytes(16))),
]
ENTRIES: Final = {
    1: tlv(0x04, bytes(16)),
    2: tlv(0x30, b"".join(TCB)),
    3: tlv(0x04, bytes(2)),
    4: tlv(0x04, bytes(6)),
    5: tlv(0x0A, b"\x01"),
}


def make_extension(**changes: bytes | None) -> bytes:
    """Return an extension of the five entries, with changes to `e1` to `e5`."""
    values = {**{f"e{n}": value for n, value in ENTRIES.items()}, **changes}
    pairs = (make_entry(bytes([int(name[1:])]), v) for name, v in values.items() if v is not None)
    return tlv(0x30, b"".join(pairs))


def change_tcb(change: Callable[[list[bytes]], object]) -> bytes:
    """Return an extension with changed TCB entries."""
    entries = list(TCB)
    change(entries)
    return make_extension(e2=tlv(0x30, b"".join(entries)))


def set_tcb_entry(number: int, value: bytes) -> bytes:
    """Return an extension whose TCB entry of that number has that value."""
    return change_tcb(lambda of: of.__setitem__(number - 1, make_entry(bytes([2, number]), value)))


def test_sgx_extension_with_five_entries_is_read() -> None:
    """Certificates of the Processor CA have neither instance id nor configuration."""
    read = read_sgx_extension(make_certificate(sgx=make_extension()))
    assert read.components == bytes(range(1, 17))
    assert (read.pcesvn, read.sgx_type) == (17, 1)


@every_case(
    ("extension", "reason", "entry_name"),
    [
        (make_extension(e1=None), "missing", "PPID"),
        (make_extension(e2=None), "missing", "TCB"),
        (make_extension(e3=None), "missing", "PCEID"),
        (make_extension(e4=None), "missing", "FMSPC"),
        (make_extension(e5=None), "missing", "SGX type"),
        (make_extension(e1=tlv(0x04, bytes(15))), "wrong_size", "PPID"),
        (make_extension(e3=tlv(0x04, bytes(3))), "wrong_size", "PCEID"),
        (make_extension(e4=tlv(0x02, bytes(6))), "wrong_type", "FMSPC"),
        (make_extension(e5=tlv(0x0A, b"")), "wrong_value", "SGX type"),
        (make_extension(e5=tlv(0x0A, b"\x00\x01")), "wrong_value", "SGX type"),
        (change_tcb(lambda of: of.pop()), "wrong_size", "TCB"),
        (
            change_tcb(lambda of: of.append(make_entry(b"\x02\x13", b"\x05\x00"))),
            "wrong_size",
            "TCB",
        ),
        (change_tcb(lambda of: of.__setitem__(0, of[1])), "duplicate", "TCB"),
        (change_tcb(lambda of: of.__setitem__(0, tlv(0x05, b""))), "wrong_type", "TCB"),
        (set_tcb_entry(3, tlv(0x02, b"\x01\x00")), "wrong_value", "TCB component 3"),
        (set_tcb_entry(3, tlv(0x02, b"\x00\x7f")), "wrong_value", "TCB component 3"),
        (set_tcb_entry(17, tlv(0x02, b"\x01\x00\x00")), "wrong_value", "PCESVN"),
        (set_tcb_entry(17, tlv(0x02, b"\x01" * 5000)), "wrong_value", "PCESVN"),
        (make_extension(e5=tlv(0x0A, b"\x01" * 5000)), "wrong_value", "SGX type"),
        (set_tcb_entry(18, tlv(0x04, bytes(17))), "wrong_size", "CPUSVN"),
        (make_extension() + b"\x05\x00", "wrong_type", "value"),
        (b"", "wrong_type", "value"),
        (b"\x30\x80\x00\x00", "syntax", "value"),
        (b"\x30\x81\x01\x00", "syntax", "value"),  # an overlong length
        (b"\x30\x83\x00\x00\x00", "syntax", "value"),
        (b"\x30\x83\x01\x00\x00" + bytes(1 << 16), "syntax", "value"),  # over 64 KiB
        (tlv(0x30, tlv(0x30, tlv(0x06, b"\x2a\x03\x01") + b"\x05\x00")), "wrong_type", "entries"),
    ],
)
def test_sgx_extension_if_malformed_fails_naming_entry(
    extension: bytes, reason: str, entry_name: str
) -> None:
    """A missing, duplicate, oversized or mistyped entry is named in the error."""
    with raises(FormatError, reason, start=f"SGX extension: {entry_name}: "):
        read_sgx_extension(make_certificate(sgx=extension))
