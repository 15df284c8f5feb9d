"""Expected measurements of TDs by kind of boot, and which arguments exclude each other."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from attestkit.attestation.launch.td_hob import MemoryRange
from attestkit.errors import FormatError, UsageError
from attestkit.measure import ExpectedMeasurements, MachineShape, snp, tdx
from attestkit.measure.acpi import find_tables
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.bios_strings import BiosStrings
from attestkit.measure.kernel.disk_boot import BootImage
from attestkit.measure.kernel.linux_kernel import patch_setup_header
from attestkit.measure.kernel.pe_image import authenticode_digest
from attestkit.measure.rtmr0.boot_options import virtio_disk_option
from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems
from attestkit.measure.rtmr0.smbios import filter_smbios, publish_smbios
from attestkit.measure.tdx_guest import TdxBoot, TdxMachine, measure_tdx
from tests.bounds.counting import peak
from tests.measure.firmware_images import (
    SMBIOS_MEASUREMENT,
    TD_TCG2,
    UI_APP,
    code_volume,
    noise,
    sections,
    tdvf_image,
    variable_volume,
    with_metadata,
)
from tests.measure.kernel.samples import gpt_disk, linux_kernel, pe_image
from tests.measure.measured_guest import VM_CONFIG, log_of
from tests.measure.sev_snp.images import sev_image
from tests.runner.cases import every_case

FIRMWARE = tdvf_image()
NEW_FIRMWARE = tdvf_image(
    (TD_TCG2, UI_APP, SMBIOS_MEASUREMENT), (b"ACPI DATA", b"etc/boot/", b"QEMU FW CFG")
)
SHAPE = MachineShape(**VM_CONFIG)
TABLES = find_tables(SHAPE)
UKI = pe_image([(".linux", linux_kernel()), (".cmdline", b"quiet"), (".initrd", b"an initrd")])
SHIM = BootImage("shim", pe_image([(".text", b"shim")]))
GRUB = BootImage("grub", pe_image([(".text", b"grub")]))


def measure(**arguments: Any) -> ExpectedMeasurements:
    """Measure a guest with the packaged tables."""
    defaults: dict[str, Any] = {"firmware": FIRMWARE, "shape": SHAPE, "acpi": TABLES}
    return tdx(**{**defaults, **arguments})


def names(found: ExpectedMeasurements, register: int) -> list[str]:
    """Return the names of a register's events."""
    return [event.name for event in found.events if event.register == register]


def completed(events: tuple[ExpectedEvent, ...]) -> tuple[ExpectedEvent, ...]:
    """Return events with digests for those that only a log has."""
    return tuple(event._replace(digest=event.digest or b"d" * 48) for event in events)


def test_direct_boot_is_proven_as_far_as_its_tables() -> None:
    """With exact tables nothing is left open; each register has a value."""
    found = measure(kernel=linux_kernel(), initrd=b"an initrd", cmdline="quiet")
    assert found.not_proven == ()
    assert None not in found.rtmrs
    assert found.bases == {
        "mrtd": "independent",
        "rtmr0": "published",
        "rtmr1": "independent",
        "rtmr2": "independent",
    }
    assert found == measure(kernel=linux_kernel(), initrd=b"an initrd", cmdline="quiet")


def test_fields_of_shape_are_arguments() -> None:
    """The machine is given as a whole or by its fields."""
    one = tdx(firmware=FIRMWARE, kernel=linux_kernel(), acpi=TABLES, **VM_CONFIG)
    assert one == measure(kernel=linux_kernel())


def test_given_tables_are_not_called_exact() -> None:
    """Files of the caller have the values of the same tables, and another basis."""
    assert TABLES is not None
    found = measure(kernel=linux_kernel(), acpi=tuple(TABLES.files))
    assert found.rtmrs == measure(kernel=linux_kernel()).rtmrs
    assert found.not_proven == ("acpi_tables_given",)
    assert found.bases["rtmr0"] == "source"


@pytest.mark.parametrize(
    ("version", "word"),
    [("8.2.2", "acpi_tables_derived"), ("", "qemu_line_differs")],
)
def test_tables_of_another_line_are_named(version: str, word: str) -> None:
    """Tables that are not of the host's QEMU are not proven."""
    shape = MachineShape(cpu_count=1, memory_size=2 << 30, qemu_version=version)
    tables = find_tables(shape)
    if tables is None:
        assert TABLES is not None
        tables = TABLES._replace(exact=False)
    found = measure(kernel=linux_kernel(), shape=shape, acpi=tables)
    assert word in found.not_proven
    assert ("qemu_version_unknown" in found.not_proven) == (not version)
    assert found.bases["rtmr1"] == ("independent" if version else "source")  # with the kernel


def test_tables_that_firmware_does_not_measure_are_named() -> None:
    """With firmware before 202302 no register depends on the tables, also if they are given."""
    firmware = tdvf_image(texts=(b"etc/boot/", b" initrd=initrd"))
    for tables in (TABLES, None):
        found = measure(firmware=firmware, kernel=linux_kernel(), acpi=tables)
        assert found.not_proven == ("acpi_tables_not_measured",)
        assert "# Not proven: acpi_tables_not_measured: " in found.to_toml()


def test_smbios_and_boot_order_may_be_unknown() -> None:
    """Firmware that measures the SMBIOS table needs it; the log has its digest."""
    found = measure(firmware=NEW_FIRMWARE, kernel=linux_kernel())
    assert found.not_proven == ("smbios_from_log",)
    assert found.rtmrs[0] is None
    assert "fw_cfg bootorder" in names(found, 0)
    other = measure(firmware=NEW_FIRMWARE, kernel=linux_kernel(), fw_cfg=FwCfgItems())
    assert "fw_cfg bootorder" not in names(other, 0)


def test_uki_has_both_forms_until_a_log_decides() -> None:
    """Whether the stub measures shows in a log; RTMR0 and RTMR1 are known without."""
    found = measure(uki=UKI)
    assert found.not_proven == ("uki_stub_rtmr2",)
    assert found.rtmrs[2] is None
    assert None not in found.rtmrs[:2]
    assert len(found.reference_values()["rtmr2"]) == 2
    assert names(found, 1)[0] == "uki"
    for events in (found.events, *found.other_events):
        logged = ExpectedMeasurements(platform="tdx", events=events)
        filled = found.with_log_digests(log_of(logged))
        assert filled.events == events
        assert filled.rtmrs == logged.rtmrs


@every_case(
    ("version", "changed"), [("", True), ("9.2.0", True), ("9.2.1", False), ("10.0.13", False)]
)
def test_uki_of_direct_boot_is_measured_as_qemu_passes_it_on(version: str, changed: bool) -> None:
    """Older QEMU writes into it, which nothing but source code confirms; not so on a disk."""
    shape = MachineShape(cpu_count=2, memory_size=2 << 30, qemu_version=version)
    loaded = UKI[:0x20] + b"\x3f\xa3\xf0\x9f" + UKI[0x24:] if changed else UKI
    events = measure(uki=UKI, shape=shape, cmdline="quiet").events
    [event] = [event for event in events if event.name == "uki"]
    assert event.digest == authenticode_digest(loaded)
    assert event.basis == ("independent" if version == "10.0.13" else "source")
    on_disk = measure(uki=UKI, shape=shape, disk=gpt_disk(), boot_options=[]).events
    [event] = [event for event in on_disk if event.name == "uki"]
    assert (event.digest, event.basis) == (authenticode_digest(UKI), "independent")
    kernel = measure(kernel=UKI, shape=shape, cmdline="quiet").events
    [event] = [event for event in kernel if event.name == "kernel"]
    assert event.digest == authenticode_digest(loaded)


def test_header_of_kernel_has_the_low_memory_of_the_machine() -> None:
    """QEMU's max-ram-below-4g changes the address of the initrd."""
    shape = replace(SHAPE, memory_size=4 << 30, qemu_version="9.2.1")
    boot = TdxBoot(kernel=linux_kernel(), initrd=b"an initrd")
    ranges = MemoryRange(0, 1 << 30), MemoryRange(4 << 30, 7 << 30)
    machine = TdxMachine.of_shape(shape)._replace(memory=ranges)
    found = measure_tdx(FIRMWARE, boot, machine).events
    [event] = [event for event in found if event.name == "kernel"]
    patched = patch_setup_header(linux_kernel(), memory_size=1 << 30, initrd_size=9, cmdline="")
    assert event.digest == authenticode_digest(patched)


def test_disk_boot_by_grub_has_no_rtmr2() -> None:
    """RTMR2 depends on GRUB's commands; single events can be searched for."""
    found = measure(kernel=linux_kernel(), disk=gpt_disk(), boot_loaders=[SHIM, GRUB])
    assert found.not_proven == ("boot_options_from_log", "grub_rtmr2", "shim_variables_from_log")
    assert names(found, 1)[2:6] == ["gpt", "shim", "grub", "kernel"]
    assert found.incomplete == (2,)
    assert found.bases["rtmr2"] == "source"
    assert found.rtmrs[0] is None
    assert found.rtmrs[1] is not None
    assert {event.name for event in found.single_events} >= {"kernel", "load-options"}
    assert "rtmr2 is not pinned" in found.to_toml()
    logged = ExpectedMeasurements(platform="tdx", events=completed(found.events))
    filled = found.with_log_digests(log_of(logged))
    assert filled.rtmrs == (logged.rtmrs[0], found.rtmrs[1], None)


def test_uki_behind_shim_has_its_variables() -> None:
    """The variables of shim come first in RTMR2; only a log has them."""
    found = measure(uki=UKI, disk=gpt_disk(), boot_loaders=[SHIM], boot_options=[])
    assert names(found, 2)[:3] == ["MokList", "MokListX", "MokListTrusted"]
    assert found.reference_values()["rtmr2"] == ()
    assert found.not_proven == ("shim_variables_from_log", "uki_stub_rtmr2")
    logged = ExpectedMeasurements(platform="tdx", events=completed(found.other_events[0]))
    assert found.with_log_digests(log_of(logged)).rtmrs == logged.rtmrs


def test_disk_boot_with_known_options() -> None:
    """Boot options of devices complete RTMR0."""
    options = [virtio_disk_option(3, 0)]
    found = measure(uki=UKI, disk=gpt_disk(), boot_options=options, boot_order=[1, 0])
    assert found.rtmrs[0] is not None
    assert names(found, 0)[-2:] == ["Boot0001", "Boot0000"]


def test_shim_of_direct_boot() -> None:
    """A shim measures variables that only a log has."""
    found = measure(kernel=linux_kernel(), shim=SHIM.data)
    assert "shim_variables_from_log" in found.not_proven
    assert names(found, 1)[:2] == ["shim", "kernel"]


@every_case(
    ("arguments", "reason"),
    [
        ({}, "missing"),
        ({"kernel": b"", "uki": b""}, "conflict"),
        ({"uki": UKI, "initrd": b""}, "conflict"),
        ({"uki": UKI, "disk": gpt_disk(), "shim": b""}, "conflict"),
        ({"uki": UKI, "shim": b""}, "conflict"),
        ({"kernel": linux_kernel(), "boot_loaders": [SHIM]}, "not_applicable"),
        ({"kernel": linux_kernel(), "cpu_count": 2}, "conflict"),
        ({"kernel": linux_kernel(), "shape": None}, "missing"),
        ({"kernel": linux_kernel(), "shape": None, "cpus": 2}, "unknown_name"),
        ({"kernel": linux_kernel(), "cmdline": "\0"}, "encoding"),
        ({"kernel": linux_kernel(), "firmware": "OVMF.fd"}, "wrong_type"),
        ({"kernel": "bzImage"}, "wrong_type"),
        ({"kernel": linux_kernel(), "initrd": "initrd"}, "wrong_type"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], reason: str) -> None:
    """Arguments of different kinds of boot exclude each other."""
    with pytest.raises(UsageError) as caught:
        measure(**arguments)
    assert caught.value.reason == reason


@every_case("cut", [0, 100, 4096, len(FIRMWARE) - 1])
def test_malformed_files(cut: int) -> None:
    """Truncated files are format errors."""
    with pytest.raises(FormatError):
        measure(firmware=FIRMWARE[:cut], kernel=linux_kernel())
    with pytest.raises(FormatError):
        measure(kernel=linux_kernel()[: min(cut, 200)])
    with pytest.raises(FormatError):
        measure(uki=UKI[: min(cut, 200)])
    with pytest.raises(FormatError):
        measure(kernel=linux_kernel(), disk=gpt_disk()[: min(cut, 600)])
    with pytest.raises(FormatError):
        measure(kernel=linux_kernel(), acpi=(b"", b"", bytes(min(cut, 600))))


@every_case(
    ("arguments", "reason"),
    [
        ({}, "missing"),
        ({"cpu_type": "EPYC-v4", "cpu_signature": 1}, "conflict"),
        ({"cpu_type": "Pentium"}, "unknown_name"),
        ({"cpu_signature": 1, "initrd": b""}, "missing"),
        ({"cpu_signature": 1, "svsm": b"", "kernel": b""}, "conflict"),
        ({"cpu_signature": 1, "vcpus": 0}, "out_of_range"),
        ({"cpu_signature": 1, "firmware": "OVMF.fd"}, "wrong_type"),
        ({"cpu_signature": 1, "kernel": "bzImage"}, "wrong_type"),
    ],
)
def test_wrong_arguments_of_snp(arguments: dict[str, Any], reason: str) -> None:
    """Arguments of SEV-SNP guests are checked."""
    call: Any = snp
    with pytest.raises(UsageError) as caught:
        call(**{"firmware": sev_image(), "vcpus": 2, **arguments})
    assert caught.value.reason == reason


def test_snp_of_clouds_needs_no_cpu_type() -> None:
    """EC2 and GCE do not measure the CPU; a kernel that is not measured is named."""
    found = snp(firmware=sev_image(), vcpus=2, vmm="gce")
    assert found.launch_digest is not None
    assert found.not_proven == ("kernel_not_measured",)
    assert found.bases == {"launch_digest": "independent"}
    assert found.with_log_digests(log_of(ExpectedMeasurements(platform="tdx"))) is found


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(4 << 20, id="4-mib"),
        pytest.param(16 << 20, id="16-mib", marks=pytest.mark.slow),
    ],
)
def test_direct_boot_takes_three_times_the_firmware_at_most(size: int) -> None:
    """The firmware and all that is allocated for MRTD and RTMRs have three times its size."""
    code = code_volume(
        (TD_TCG2, UI_APP),
        (b"ACPI DATA", b"etc/boot/"),
        unpacked=bytes(15 << 20),
        dictionary=16 << 20,
    )  # sizes of OVMF
    flash = variable_volume(b"") + code
    firmware = with_metadata(flash + noise("rest", size - len(flash)), sections(size))
    kernel = linux_kernel()
    allocated = peak(lambda: measure(firmware=firmware, kernel=kernel, initrd=b"an initrd"))
    assert len(firmware) + allocated <= 3 * len(firmware)


def test_smbios_has_the_strings_of_the_firmware() -> None:
    """They are read from the image; where that fails the digest is unknown, and never wrong."""
    qemu = bytes.fromhex("7f047f7f0000")
    strings = BiosStrings("A vendor", "2026.08-2", "09/26/2026")
    files, texts = (TD_TCG2, UI_APP, SMBIOS_MEASUREMENT), (b"ACPI DATA", b"etc/boot/")
    for bios_texts, expected in (
        (reversed(strings), strings),
        (("EDK II",), BiosStrings()),
        (("A vendor", "09/26/2026"), None),
    ):
        firmware = tdvf_image(files, texts, bios_texts=bios_texts)
        found = measure(firmware=firmware, kernel=linux_kernel(), smbios=qemu)
        given = publish_smbios(qemu, strings)
        known = measure(firmware=firmware, kernel=linux_kernel(), smbios=given)
        assert (known.not_proven, None in known.rtmrs) == ((), False)
        if expected is None:
            assert (found.not_proven, found.rtmrs[0]) == (("smbios_from_log",), None)
        else:
            published = publish_smbios(qemu, expected)
            (event,) = [one for one in found.events if one.name == "smbios"]
            assert event.digest == hashlib.sha384(filter_smbios(published)).digest()
            assert (found == known) is (expected == strings)
