"""Other machines: older kernels, out-of-tree drivers, SEV-SNP guests, guests without a driver."""

import ctypes
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from tests import dcap
from tests.rigs.emulator import REPORTS, Emulator, emulator, requires_fuse
from tests.rigs.file_calls import (
    GET_REPORT0,
    MEASUREMENTS,
    NONCE,
    failure,
    generation,
    get,
    new_entry,
    put,
    td_report,
)

pytestmark = [pytest.mark.rig, requires_fuse]

NODE = "dev/tdx_guest"


def exists(machine: Emulator) -> dict[str, bool]:
    """Tell which of the kernel's files are there."""
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
        ({"kernel": "6.1"}, {"table"}),
        ({"kernel": "6.6"}, {"table", "log", "device"}),
        ({"kernel": "6.12"}, {"table", "log", "device", "reports"}),
        ({"kernel": "7.3"}, {"table", "log", "device", "reports", "registers"}),
        ({"provider": "none"}, {"table", "log", "reports"}),
        ({"provider": "sev_guest"}, {"sev", "reports"}),
        ({"kernel": "6.1", "driver": "C"}, {"table", "device"}),
    ],
)
def test_what_is_there(options: dict[str, Any], there: set[str]) -> None:
    """A machine has the files that its kernel and its platform bring."""
    with emulator(**options) as machine:
        assert {name for name, found in exists(machine).items() if found} == there
        assert not (machine.root / "etc").exists()
        assert machine.boot_id


def test_no_driver() -> None:
    """Without a driver no entry can be made: ENXIO."""
    with emulator(provider="none") as machine:
        assert failure(new_entry, machine) == "ENXIO"
        assert machine.entries() == []


def test_version_5() -> None:
    """A TDX 1.5 guest has the larger report and body, which verify as well."""
    with emulator(quote_version=5, mr_config_id="01" * 48) as machine:
        report = td_report(machine, NONCE)
        quote = get(new_entry(machine, inblob=NONCE) / "outblob")
        parsed = Quote.parse(quote)
        assert (report.version, report.valid, parsed.header.version) == (1, 0x301FF, 5)
        assert report.quote_body(extended=True) == quote[54 : 54 + 648]
        assert (
            report.mr_config_id == get(machine.root / MEASUREMENTS / "mrconfigid") == b"\x01" * 48
        )
        now = int(time.time())
        verdict = dcap.judge(quote, machine.collateral(), machine.trust_anchor, now)
        assert verdict.status == "UpToDate"


@pytest.fixture(scope="module")
def old(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Return a guest with an old driver, one machine for all tests of that driver."""
    with emulator(kernel="6.6", driver=request.param) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.mark.parametrize(
    ("old", "number"),
    [("C", 0x80315403), ("C'", 0x40315403), ("dstack", 0x80315403)],
    indirect=["old"],
)
def test_extend_by_ioctl(old: Emulator, number: int) -> None:
    """Old drivers extend registers 2 and 3, and say why not the others."""
    fd = os.open(old.root / NODE, os.O_RDWR)
    before = td_report(old, NONCE).rtmrs
    for register, says in ((0, "EPERM"), (1, "EPERM"), (4, "EINVAL"), (255, "EINVAL")):
        request = bytearray(bytes(48) + bytes([register]))
        assert failure(fcntl.ioctl, fd, number, request) == says
    assert td_report(old, NONCE).rtmrs == before
    digest = hashlib.sha384(b"event").digest()
    assert fcntl.ioctl(fd, number, bytearray(digest + b"\x03")) == 0
    after = td_report(old, NONCE).rtmrs
    assert after[:3] == before[:3]
    assert after[3] == hashlib.sha384(before[3] + digest).digest()
    others = {0x80315403, 0x40315403} - {number}
    assert failure(fcntl.ioctl, fd, others.pop(), bytearray(49)) == "ENOTTY"
    os.close(fd)


def quote_by_ioctl(machine: Emulator, number: int, request: bytes) -> tuple[int, bytes]:
    """Ask by pointer, as the old drivers want it; return the status and the answer."""
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
def test_quote_by_ioctl(old: Emulator, number: int) -> None:
    """Drivers of generation D take a bare report and answer with the bare quote, in place."""
    report = td_report(old, NONCE).raw
    status, quote = quote_by_ioctl(old, number, report)
    assert status == 0
    now = int(time.time())
    assert dcap.judge(quote, old.collateral(), old.trust_anchor, now).status == "UpToDate"
    assert Quote.parse(quote).report_data == NONCE
    forged = report[:-500] + bytes([report[-500] ^ 1]) + report[-499:]
    assert quote_by_ioctl(old, number, forged) == (0x8000000000000000, b"")


@pytest.mark.parametrize(
    ("old", "number"), [("C", 0x80105404), ("C'", 0xC0105404)], indirect=["old"]
)
def test_message_by_ioctl(old: Emulator, number: int) -> None:
    """Drivers of generation C exchange the service's messages, with their length before them."""
    report = td_report(old, NONCE).raw
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


@pytest.mark.parametrize(("old", "number"), [("D", 0xC0105402)], indirect=["old"])
def test_quote_ioctl_goes_wrong(old: Emulator, number: int) -> None:
    """A pointer to nowhere is EFAULT, a buffer without room EINVAL; the host's failure a status."""
    fd = os.open(old.root / NODE, os.O_RDWR)
    for address, size, says in ((8, 16384, "EFAULT"), (8, 23, "EINVAL"), (8, 1 << 40, "EINVAL")):
        assert failure(fcntl.ioctl, fd, number, struct.pack("<QQ", address, size)) == says
    os.close(fd)
    old.fault("quote_fails", "empty_outblob", "ioctl:GET_QUOTE=EBUSY")
    report = td_report(old, NONCE).raw
    assert failure(quote_by_ioctl, old, number, report) == "EBUSY"
    assert quote_by_ioctl(old, number, report) == (0x8000000000000000, b"")
    assert quote_by_ioctl(old, number, report) == (0, b"")
    assert quote_by_ioctl(old, number, report)[1]


# -- SEV-SNP -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    """Return an SEV-SNP guest under an SVSM, at VMPL 2."""
    with emulator(provider="sev_guest", vmpl=2, host_data="05" * 32) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def guest(shared: Emulator) -> Emulator:
    """Return it, just booted and without faults."""
    shared.clear_faults()
    shared.reboot()
    return shared


def ask(guest: Emulator, name: str = "test", level: bytes = b"2") -> Path:
    """Make an entry with a nonce and a level."""
    entry = new_entry(guest, name, NONCE)
    put(entry / "privlevel", level)
    return entry


def test_snp_entry(guest: Emulator) -> None:
    """Under an SVSM an entry has all the files that there are."""
    entry = new_entry(guest)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in entry.iterdir()}
    written = ("inblob", "privlevel", "service_provider", "service_guid")
    read = ("outblob", "auxblob", "manifestblob", "provider", "generation", "privlevel_floor")
    assert modes == {
        **dict.fromkeys((*written, "service_manifest_version"), "0o200"),
        **dict.fromkeys(read, "0o444"),
    }
    assert get(entry / "provider") == b"sev_guest\n"
    assert get(entry / "privlevel_floor") == b"2\n"


def test_snp_report(guest: Emulator) -> None:
    """The report is well formed, over the nonce, at the level that was asked for."""
    entry = ask(guest, level=b"3\n")
    report = SnpReport.parse(get(entry / "outblob"))
    assert (report.report_data, report.vmpl, report.host_data) == (NONCE, 3, b"\x05" * 32)
    assert (report.product, report.signing_key) == ("Genoa", "VCEK")
    assert report.tcb().snp == 21
    assert generation(entry) == 2


def test_snp_without_svsm() -> None:
    """Without an SVSM there are three files beside the usual four; the level is 0 unless set."""
    with emulator(provider="sev_guest", no_certificates=True) as guest:
        entry = new_entry(guest, inblob=NONCE)
        names = {file.name for file in entry.iterdir()}
        assert names - {"inblob", "outblob", "provider", "generation"} == {
            *("auxblob", "privlevel", "privlevel_floor")
        }
        assert get(entry / "privlevel_floor") == b"0\n"
        assert SnpReport.parse(get(entry / "outblob")).vmpl == 0
        assert get(entry / "auxblob") == b""
        assert failure(get, guest.root / "dev/sev-guest") == "EIO"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((b"1", "EINVAL"), (b"4", "EINVAL"), (b"", ""), (b"x", "EINVAL"), (b"\x02", "EINVAL")),
        *((b"2\n\n", "EINVAL"), (b" 2", "EINVAL"), (b"99999999999", "ERANGE"), (b"-2", "EINVAL")),
        *((b"2", ""), (b"2\n", ""), (b"0x3", ""), (b"03", ""), (b"+2", "")),
    ],
)
def test_privlevel(guest: Emulator, text: bytes, says: str) -> None:
    """A level is text, as C writes numbers, from the floor to 3."""
    entry = new_entry(guest)
    if says:
        assert failure(put, entry / "privlevel", text) == says
        assert generation(entry) == 0
    elif text:
        assert put(entry / "privlevel", text) == len(text)
        assert generation(entry) == 1


def test_level_left_out(guest: Emulator) -> None:
    """A guest above VMPL 0 that does not say its level gets EINVAL from outblob."""
    assert failure(get, new_entry(guest, inblob=NONCE) / "outblob") == "EINVAL"


def test_certificates(guest: Emulator) -> None:
    """Auxblob is a table whose entries lie behind its end and do not overlap; it makes a report."""
    entry = ask(guest)
    table = get(entry / "auxblob")
    assert generation(entry) == 2
    at, ends, guids = 0, [], []
    while (row := table[at : at + 24]) != bytes(24):
        offset, length = struct.unpack("<II", row[16:])
        guids.append(str(UUID(bytes=row[:16])))
        assert table[offset : offset + 2] == b"\x30\x82"
        ends.append((offset, offset + length))
        at += 24
    assert guids[0] == "63da758d-e664-4564-adc5-f4b93be8accd"
    assert [start for start, _ in ends] == [at + 24, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == len(table)


def test_manifest(guest: Emulator) -> None:
    """With an SVSM the report is its own, over the nonce and the manifest."""
    entry = new_entry(guest, inblob=NONCE)
    put(entry / "service_provider", b"svsm\n")
    report = SnpReport.parse(get(entry / "outblob"))
    manifest = get(entry / "manifestblob")
    assert manifest
    assert report.vmpl == 0
    assert report.report_data == hashlib.sha512(NONCE + manifest).digest()
    put(entry / "service_guid", b"c476f1eb-0123-45a5-9641-b4e7dde5bfe3")
    assert get(entry / "manifestblob") != manifest


def test_services(guest: Emulator) -> None:
    """A wrong provider fails late, a wrong GUID at once, though it counts."""
    entry = ask(guest)
    put(entry / "service_provider", b"other")
    assert failure(get, entry / "outblob") == "EINVAL"
    put(entry / "service_provider", b"svsm")
    before = generation(entry)
    for text in (b"", b"c476f1eb", b"c476f1eb-0123-45a5-9641-b4e7dde5bfeX"):
        if text:
            assert failure(put, entry / "service_guid", text) == "EINVAL"
    assert generation(entry) == before + 2
    put(entry / "service_guid", b"11111111-1111-1111-1111-111111111111")
    assert failure(get, entry / "outblob") == "EINVAL"
    assert failure(put, entry / "service_manifest_version", b"x") == "EINVAL"
    put(entry / "service_manifest_version", b"1")


@pytest.mark.parametrize("name", ["eio", "etimedout", "quote_fails"])
def test_key_is_wiped(guest: Emulator, name: str) -> None:
    """After a failed exchange only a reboot brings reports back."""
    entry = ask(guest)
    guest.fault(name)
    assert failure(get, entry / "outblob") in ("EIO", "ETIMEDOUT")
    assert failure(get, entry / "outblob") == "ENOTTY"
    assert failure(get, ask(guest, "other") / "outblob") == "ENOTTY"
    guest.kexec()
    assert failure(get, ask(guest) / "outblob") == "ENOTTY"
    guest.reboot()
    assert SnpReport.parse(get(ask(guest) / "outblob")).report_data == NONCE


def test_busy_wipes_nothing(guest: Emulator) -> None:
    """Other errors leave the key alone."""
    entry = ask(guest)
    guest.fault("ebusy")
    assert failure(get, entry / "outblob") == "EBUSY"
    assert SnpReport.parse(get(entry / "outblob")).report_data == NONCE


def test_snp_effects(guest: Emulator) -> None:
    """Reports can be empty, short, or over something else."""
    guest.fault("empty_outblob", "short_outblob", "wrong_report_data")
    assert get(ask(guest, "a") / "outblob") == b""
    assert len(get(ask(guest, "b") / "outblob")) == 1000
    wrong = SnpReport.parse(get(ask(guest, "c") / "outblob"))
    assert wrong.report_data == bytes(byte ^ 0xFF for byte in NONCE)


def test_no_registers(guest: Emulator) -> None:
    """An SEV-SNP guest has no registers to extend, and its device no command that we copy."""
    assert not (guest.root / MEASUREMENTS).exists()
    fd = os.open(guest.root / "dev/sev-guest", os.O_RDWR)
    assert failure(fcntl.ioctl, fd, GET_REPORT0, bytearray(1088)) == "ENOTTY"
    os.close(fd)
