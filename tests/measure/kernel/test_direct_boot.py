"""RTMR1 and RTMR2 of a kernel that QEMU boots directly."""

import hashlib
import json
from typing import Any

import pytest

from attestkit._crypto.hashes import sha384
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.kernel.kernel_events import kernel_stub_events
from attestkit.measure.kernel.linux_kernel import DirectBoot, FirmwareTraits, direct_boot_events
from attestkit.measure.kernel.pe_image import authenticode_digest
from tests.measure.kernel.samples import linux_kernel, pe_image
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, data, load, needs_shared

ROWS: list[dict[str, Any]] = load("measurement.json").get("guests", [])
OLD = FirmwareTraits(named_blobs=False, initrd_first=False, boot_separator=False)
NEW = FirmwareTraits(named_blobs=True, initrd_first=True)
BOOT = DirectBoot(linux_kernel(), b"initrd", "console=ttyS0")


def replay(events: list[ExpectedEvent], register: int) -> bytes:
    """Return the value of a register after its events."""
    value = bytes(48)
    for event in events:
        if event.register == register:
            assert event.digest is not None
            value = hashlib.sha384(value + event.digest).digest()
    return value


def boot_row(row: dict[str, Any]) -> list[ExpectedEvent]:
    """Return the expected events of a row, with the traits of its firmware."""
    newest = any(release in row["firmware"] for release in ("202605", "2026.08"))
    version = row["vm"]["qemu_version"].split(".")
    initrd = None if row["initrd"] is None else (SHARED / row["initrd"]).read_bytes()
    boot = DirectBoot((SHARED / row["kernel"]).read_bytes(), initrd, row["cmdline"])
    firmware = FirmwareTraits(named_blobs=True, initrd_first=newest)
    qemu = int(version[0]), int(version[1])
    return direct_boot_events(boot, firmware, qemu=qemu, memory_size=row["vm"]["memory_size"])


@every_case("row", ROWS, ids=lambda row: row["name"])
def test_direct_boot_vectors(row: dict[str, Any]) -> None:
    """Events and registers 1 and 2 of a guest are the published ones."""
    events = boot_row(row)
    expected = [(number, name, digest) for number, name, digest in row["events"] if number]
    found = [
        (event.register, event.name, event.digest.hex())
        for event in events
        if event.digest is not None
    ]
    assert found == expected
    assert replay(events, 1).hex() == row["rtmr1"]
    assert replay(events, 2).hex() == row["rtmr2"]


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_direct_boot_vectors_are_complete() -> None:
    """All seven guests are known."""
    assert len(ROWS) == 7


@needs_shared
def test_fixed_events_and_order_are_those_of_hardware() -> None:
    """A log of hardware has the same types in the same order, and the fixed digests."""
    report = json.loads(data("dstack/verifier/quote-report.json"))
    log = [event for event in json.loads(report["event_log"]) if event["imr"] in (1, 2)]
    ours = direct_boot_events(
        BOOT, NEW._replace(named_blobs=False), qemu=(9, 2), memory_size=1 << 31
    )
    for register in (1, 2):
        logged = [event for event in log if event["imr"] == register]
        expected = [event for event in ours if event.register == register]
        types = [event["event_type"] for event in logged]
        assert [event.event_type for event in expected] == types
        for event, other in zip(expected, logged, strict=True):
            if event.basis == "hardware":
                assert event.digest is not None
                assert event.digest.hex() == other["digest"]
    assert sum(event.basis == "hardware" for event in ours) == 4


def test_kernel_event_follows_qemu_and_firmware() -> None:
    """The kernel of old firmware is patched until QEMU 10.1, that of new firmware until 9.2."""
    unchanged = authenticode_digest(BOOT.kernel)
    for firmware, qemu, patched in (
        (OLD, (10, 1), True),
        (OLD, (10, 2), False),
        (NEW, (9, 2), True),
        (NEW, (10, 0), False),
    ):
        events = direct_boot_events(BOOT, firmware, qemu=qemu, memory_size=1 << 31)
        assert events[0].name == "kernel"
        assert (events[0].digest != unchanged) is patched


def test_basis_names_what_is_known_from_source_alone() -> None:
    """Other programs confirm neither all load options nor all kernels.

    They do not confirm the load options of a boot without an initrd, a kernel that old firmware
    loads on new QEMU, or the changes of a file without a setup header.
    """
    cases: tuple[tuple[DirectBoot, FirmwareTraits, tuple[int, int], set[str]], ...] = (
        (BOOT, NEW, (10, 2), set()),
        (BOOT, OLD, (9, 2), set()),
        (BOOT, OLD, (10, 1), set()),
        (BOOT, OLD, (10, 2), {"kernel"}),
        (BOOT._replace(kernel=pe_image([(".text", b"code")])), OLD, (9, 2), {"kernel"}),
        (BOOT._replace(initrd=None), NEW, (10, 2), {"load-options"}),
    )
    for boot, firmware, qemu, names in cases:
        events = direct_boot_events(boot, firmware, qemu=qemu, memory_size=1 << 31)
        assert {event.name for event in events if event.basis == "source"} == names


def test_separator_is_only_there_with_newer_firmware() -> None:
    """Before edk2 202411 the separator is in RTMR0."""
    for firmware in (OLD, NEW):
        events = direct_boot_events(BOOT, firmware, qemu=(9, 2), memory_size=1 << 31)
        found = [event.name for event in events if event.register == 1]
        expected = ["kernel", "calling", "separator", "exit-invocation", "exit-success"]
        assert found == [n for n in expected if n != "separator" or firmware.boot_separator]


def test_shim_precedes_kernel_and_leaves_unknown_digests() -> None:
    """A shim is one more image; the content of its variables is not determined."""
    shim = pe_image([(".text", b"shim")])
    events = direct_boot_events(BOOT._replace(shim=shim), NEW, qemu=(10, 2), memory_size=1 << 31)
    assert [event.name for event in events[:2]] == ["shim", "kernel"]
    assert events[0].digest == authenticode_digest(shim)
    assert [event.name for event in events if event.digest is None] == [
        "MokList", "MokListX", "MokListTrusted",
    ]  # fmt: skip
    options = next(event for event in events if event.name == "load-options")
    assert options.digest == sha384("kernel initrd=initrd console=ttyS0\0".encode("utf-16-le"))


@pytest.mark.parametrize("initrd", [None, b""])
def test_boot_without_initrd_has_no_initrd_event(initrd: bytes | None) -> None:
    """An empty initrd is not announced to the kernel, which then measures none."""
    boot = BOOT._replace(initrd=initrd)
    events = direct_boot_events(boot, NEW, qemu=(10, 2), memory_size=1 << 31)
    assert [event.name for event in events if event.register == 2] == ["load-options"]
    assert events[-1].digest == sha384("console=ttyS0\0".encode("utf-16-le"))


def test_stub_measures_only_what_is_there() -> None:
    """Without load options and initrd, the stub of the kernel measures nothing."""
    assert kernel_stub_events(b"", None) == []
