"""Emulated guests with older kernels, out-of-tree drivers, SEV-SNP, or without a driver."""

import ctypes
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from tests.clients import python_dcap_qvl as dcap
from tests.rigs.emulator import REPORTS, Emulator, emulator, requires_fuse
from tests.rigs.kernel_files.file_calls import (
    MEASUREMENTS,
    NONCE,
    errno_name_of,
    get_td_report,
    new_entry,
    read_generation,
    read_once,
    write_once,
)
from tests.thorough import slow

pytestmark = [pytest.mark.rig, requires_fuse, pytest.mark.slow]

NODE = "dev/tdx_guest"


def find_files(machine: Emulator) -> dict[str, bool]:
    """Return whether each of the kernel's files exists."""
    paths = {
        "reports": REPORTS,
        "device": NODE,
        "registers": MEASUREMENTS,
        "table": "sys/firmware/acpi/tables/CCEL",
        "log": "sys/firmware/acpi/tables/data/CCEL",
        "sev": "dev/sev-guest",
    }
    return {name: (machine.root / path).exists() for name, path in paths.items()}


# -- kernels and drivers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ({"kernel_release": "7.3"}, {"table", "log", "device", "reports", "registers"}),
        ({"provider": "sev_guest"}, {"sev", "reports"}),
        ({"kernel_release": "6.1", "driver": "C"}, {"table", "device"}),
        *slow(
            ({"kernel_release": "6.1"}, {"table"}),
            ({"kernel_release": "6.6"}, {"table", "log", "device"}),
            ({"kernel_release": "6.12"}, {"table", "log", "device", "reports"}),
            ({"provider": "none"}, {"table", "log", "reports"}),
        ),
    ],
)
def test_guest_has_files_of_its_kernel_and_platform(
    options: dict[str, Any], there: set[str]
) -> None:
    """Other files are absent."""
    with emulator(**options) as machine:
        assert {name for name, found in find_files(machine).items() if found} == there
        assert not (machine.root / "etc").exists()
        assert machine.boot_id


def test_guest_without_driver_rejects_entries() -> None:
    """Mkdir fails with ENXIO."""
    with emulator(provider="none") as machine:
        assert errno_name_of(new_entry, machine) == "ENXIO"
        assert machine.entries() == []


def test_guest_with_version_5_quotes_has_td15_report() -> None:
    """The larger report and body verify, too."""
    with emulator(quote_version=5, mr_config_id="01" * 48) as machine:
        report = get_td_report(machine, NONCE)
        quote = read_once(new_entry(machine, inblob=NONCE) / "outblob")
        parsed = Quote.parse(quote)
        assert (report.version, report.valid, parsed.header.version) == (1, 0x301FF, 5)
        assert report.quote_body(extended=True) == quote[54 : 54 + 648]
        assert (
            report.mr_config_id
            == read_once(machine.root / MEASUREMENTS / "mrconfigid")
            == b"\x01" * 48
        )
        now = int(time.time())
        verdict = dcap.verify_with_dcap_qvl(quote, machine.collateral(), machine.trust_anchor, now)
        assert verdict.status == "UpToDate"


@pytest.fixture(scope="module")
def old(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Run a guest with an old driver, for all tests of that driver."""
    with emulator(kernel_release="6.6", driver=request.param) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.mark.parametrize(
    ("old", "number"),
    [("C", 0x80315403), ("C'", 0x40315403), ("dstack", 0x80315403)],
    indirect=["old"],
)
def test_old_driver_extends_rtmr2_and_rtmr3(old: Emulator, number: int) -> None:
    """Other registers are rejected with an errno."""
    fd = os.open(old.root / NODE, os.O_RDWR)
    before = get_td_report(old, NONCE).rtmrs
    for register, expected in ((0, "EPERM"), (1, "EPERM"), (4, "EINVAL"), (255, "EINVAL")):
        request = bytearray(bytes(48) + bytes([register]))
        assert errno_name_of(fcntl.ioctl, fd, number, request) == expected
    assert get_td_report(old, NONCE).rtmrs == before
    digest = hashlib.sha384(b"event").digest()
    assert fcntl.ioctl(fd, number, bytearray(digest + b"\x03")) == 0
    after = get_td_report(old, NONCE).rtmrs
    assert after[:3] == before[:3]
    assert after[3] == hashlib.sha384(before[3] + digest).digest()
    others = {0x80315403, 0x40315403} - {number}
    assert errno_name_of(fcntl.ioctl, fd, others.pop(), bytearray(49)) == "ENOTTY"
    os.close(fd)


def quote_by_ioctl(machine: Emulator, number: int, request: bytes) -> tuple[int, bytes]:
    """Request a quote by pointer; return the status and the response."""
    size = 16384
    buffer = ctypes.create_string_buffer(size)
    struct.pack_into("<QQII", buffer, 0, 1, 0, len(request), 0)
    ctypes.memmove(ctypes.addressof(buffer) + 24, request, len(request))
    fd = os.open(machine.root / NODE, os.O_RDWR)
    try:
        fcntl.ioctl(fd, number, struct.pack("<QQ", ctypes.addressof(buffer), size))
    finally:
        os.close(fd)
    _, status, _, answered = struct.unpack_from("<QQII", buffer)
    return status, buffer.raw[24 : 24 + answered]


@pytest.mark.parametrize(
    ("old", "number"), [("D", 0xC0105402), ("D'", 0x80105402)], indirect=["old"]
)
def test_generation_d_driver_exchanges_bare_report_and_quote(old: Emulator, number: int) -> None:
    """EFAULT for a bad pointer, EINVAL for a wrong size, a status for a forged report."""
    report = get_td_report(old, NONCE).raw
    status, quote = quote_by_ioctl(old, number, report)
    assert (status, Quote.parse(quote).report_data) == (0, NONCE)
    forged = report[:-500] + bytes([report[-500] ^ 1]) + report[-499:]
    assert quote_by_ioctl(old, number, forged) == (0x8000000000000000, b"")
    fd = os.open(old.root / NODE, os.O_RDWR)
    for size, expected in ((16384, "EFAULT"), (23, "EINVAL"), (1 << 40, "EINVAL")):
        assert errno_name_of(fcntl.ioctl, fd, number, struct.pack("<QQ", 8, size)) == expected
    os.close(fd)


@pytest.mark.parametrize(
    ("old", "number"), [("C", 0x80105404), ("C'", 0xC0105404)], indirect=["old"]
)
def test_generation_c_driver_exchanges_qgs_messages(old: Emulator, number: int) -> None:
    """A length prefix precedes each message."""
    report = get_td_report(old, NONCE).raw
    head = struct.pack("<HHIIIII", 1, 1, 0, 1048, 0, 1024, 0)
    status, answer = quote_by_ioctl(old, number, struct.pack(">I", 1048) + head + report)
    assert status == 0
    assert struct.unpack_from(">I", answer) == (len(answer) - 4,)
    major, _, kind, size, error, id_size, quote_size = struct.unpack_from("<HHIIIII", answer, 4)
    assert (major, kind, error, id_size) == (1, 1, 0, 16)
    assert size == len(answer) - 4 == 24 + id_size + quote_size
    assert Quote.parse(answer[-quote_size:]).report_data == NONCE
    forged = report[:-500] + bytes([report[-500] ^ 1]) + report[-499:]
    status, answer = quote_by_ioctl(old, number, struct.pack(">I", 1048) + head + forged)
    assert (status, answer[4:]) == (0, struct.pack("<HHIIIII", 1, 1, 1, 24, 0x12001, 0, 0))


# -- SEV-SNP -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    """Run an SEV-SNP guest at VMPL 2 under an SVSM."""
    with emulator(provider="sev_guest", vmpl=2, host_data="05" * 32) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def guest(shared: Emulator) -> Emulator:
    """Return the rebooted guest without faults."""
    shared.clear_faults()
    shared.reboot()
    return shared


def new_request(guest: Emulator, name: str = "test", level: bytes = b"2") -> Path:
    """Create an entry with a nonce and a level."""
    entry = new_entry(guest, name, NONCE)
    write_once(entry / "privlevel", level)
    return entry


def test_emulated_snp_report_is_well_formed(guest: Emulator) -> None:
    """It is over the nonce, at the requested level."""
    entry = new_request(guest, level=b"3\n")
    report = SnpReport.parse(read_once(entry / "outblob"))
    assert (report.report_data, report.vmpl, report.host_data) == (NONCE, 3, b"\x05" * 32)
    assert (report.product, report.signing_key) == ("Genoa", "VCEK")
    assert report.tcb().snp == 21
    assert read_generation(entry) == 2


def test_emulated_snp_without_svsm_has_three_more_files() -> None:
    """The default level is 0."""
    with emulator(provider="sev_guest", no_certificates=True) as guest:
        entry = new_entry(guest, inblob=NONCE)
        names = {file.name for file in entry.iterdir()}
        assert names - {"inblob", "outblob", "provider", "generation"} == {
            *("auxblob", "privlevel", "privlevel_floor")
        }
        assert read_once(entry / "privlevel_floor") == b"0\n"
        assert SnpReport.parse(read_once(entry / "outblob")).vmpl == 0
        assert read_once(entry / "auxblob") == b""
        assert errno_name_of(read_once, guest.root / "dev/sev-guest") == "EIO"


def test_emulated_snp_svsm_report_covers_the_manifest(guest: Emulator) -> None:
    """Its report data is the hash of nonce and manifest."""
    entry = new_entry(guest, inblob=NONCE)
    write_once(entry / "service_provider", b"svsm\n")
    report = SnpReport.parse(read_once(entry / "outblob"))
    manifest = read_once(entry / "manifestblob")
    assert manifest
    assert report.vmpl == 0
    assert report.report_data == hashlib.sha512(NONCE + manifest).digest()
    write_once(entry / "service_guid", b"c476f1eb-0123-45a5-9641-b4e7dde5bfe3")
    assert read_once(entry / "manifestblob") != manifest
    for name, unknown in (
        ("service_guid", b"11111111-1111-1111-1111-111111111111"),
        ("service_provider", b"other"),
    ):
        write_once(entry / name, unknown)
        assert errno_name_of(read_once, entry / "outblob") == "EINVAL"


@pytest.mark.parametrize("name", ["eio", "etimedout", "quote_fails"])
def test_emulated_snp_failed_exchange_wipes_the_key(guest: Emulator, name: str) -> None:
    """Only a reboot restores it."""
    entry = new_request(guest)
    guest.fault(name)
    assert errno_name_of(read_once, entry / "outblob") in ("EIO", "ETIMEDOUT")
    assert errno_name_of(read_once, entry / "outblob") == "ENOTTY"
    assert errno_name_of(read_once, new_request(guest, "other") / "outblob") == "ENOTTY"
    guest.kexec()
    assert errno_name_of(read_once, new_request(guest) / "outblob") == "ENOTTY"
    guest.reboot()
    assert SnpReport.parse(read_once(new_request(guest) / "outblob")).report_data == NONCE
