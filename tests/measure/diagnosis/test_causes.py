"""Causes that single events reveal, and what is said without the inputs."""

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.td_hob import (
    EFI_GLOBAL,
    VariableName,
    variable_data,
)
from attestkit.event_log import Event, EventLog
from attestkit.measure import ExpectedMeasurements, tdx
from attestkit.measure.acpi.packaged_tables import packaged_entries
from attestkit.measure.acpi.qemu.qemu_machine import read_machine
from attestkit.measure.acpi.qemu.user_command import clean_command
from attestkit.measure.diagnosis.acpi_causes import (
    _compare_shapes,
    _explain_growth,
    _from_lengths,
)
from attestkit.measure.diagnosis.difference import Cause, CauseName, DifferenceKind
from attestkit.measure.diagnosis.evidence_comparison import find_differences
from attestkit.measure.diagnosis.guest_inputs import GuestInputs
from attestkit.measure.diagnosis.guest_shape import TableShape, find_acpi_shape
from attestkit.measure.diagnosis.logged_event import name_event, read_variable
from attestkit.measure.kernel.kernel_events import encode_options
from attestkit.measure.rtmr0.boot_options import virtio_disk_option
from tests.cli import schemas
from tests.measure.acpi.machines import installed_version, needs_qemu
from tests.measure.diagnosis.guests import (
    CMDLINE,
    SHAPE,
    SMBIOS,
    arguments,
    boot,
    evidence_of,
    inputs_of,
    log_of,
    tables,
    with_hpet,
)
from tests.measure.firmware_images import variable_volume
from tests.runner.cases import every_case

EXPECTED = tdx(**arguments())
PK = VariableName(EFI_GLOBAL, "PK")


def position_of(name: str) -> int:
    """Return the index of an expected event among all."""
    return next(at for at, event in enumerate(EXPECTED.events) if event.name == name)


def changed(name: str, digest: bytes, payload: bytes = b"") -> Cause:
    """Return the cause if the event of a name has another digest and data."""
    at, events = position_of(name), list(log_of(EXPECTED).events)
    events[at] = events[at]._replace(digest=digest, payload=payload or events[at].payload)
    evidence = evidence_of(EXPECTED, EventLog(events))
    (found,) = find_differences(EXPECTED, evidence, inputs=inputs_of(arguments()))
    assert (found.event, found.kind, found.actual) == (name, "changed", digest)
    return found.cause


def variable(name: str, data: bytes) -> bytes:
    """Return the data of an event of a boot variable."""
    return variable_data(VariableName(EFI_GLOBAL, name), data)


def blank_variables(size: int, store: int, working: int) -> bytes:
    """Return the volume of a build without variables, with edk2's block for fault tolerance."""
    volume = bytearray(variable_volume(b"", size))
    struct.pack_into("<I", volume, 72 + 16, store - 72)
    guid = UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le
    volume[working : working + 32] = guid + struct.pack("<IIQ", 0x642CAF2C, 0xFFFFFFFE, 0xFE0)
    return bytes(volume)


@pytest.mark.parametrize(
    ("volume", "build"),
    [((0x84000, 0x40000, 0x41000), "4 MiB"), ((0x20000, 0xE000, 0xF000), "2 MiB")],
)
def test_blank_variables_are_known(volume: tuple[int, int, int], build: str) -> None:
    """The digest of a volume without variables is that of edk2's builds."""
    cause = changed("cfv", sha384(blank_variables(*volume)))
    assert cause == Cause.found("variable_store", cause.text, build)


def test_keys_in_the_log_are_proven_by_their_digest() -> None:
    """Data that have the event's digest are authentic, other data are not."""
    data = variable_data(PK, b"a key")
    assert changed("PK", sha384(data), data).proven
    for payload in (b"", data[:-1], variable_data(PK, b"other"), b"\xff" * 40):
        cause = changed("PK", sha384(data), payload)
        assert (cause.name, cause.proven) == ("secure_boot_keys", False)


def test_secure_boot_states_are_known() -> None:
    """The value of SecureBoot follows from the digest; an unknown one is not guessed."""
    name = VariableName(EFI_GLOBAL, "SecureBoot")
    assert changed("SecureBoot", sha384(variable_data(name, b"\1"))).value == "on"
    assert changed("SecureBoot", sha384(b"x")) == Cause(
        "secure_boot", "secure boot on, off or not built in"
    )


def test_boot_options_are_read_from_the_log() -> None:
    """Order, description and path of boot options are shown if their digest agrees."""
    cause = changed("BootOrder", sha384(b"\2\0\0\0"), variable("BootOrder", b"\2\0\0\0"))
    assert (cause.name, cause.proven, cause.value) == ("boot_options", True, "0002 0000")
    option = virtio_disk_option(3)
    cause = changed("Boot0001", sha384(option), variable("Boot0001", option))
    assert cause.proven
    assert str(cause.value).startswith("UEFI Misc Device (02010c00d041030a")
    cause = changed("Boot0001", sha384(option), variable("Boot0001", b"other"))
    assert (cause.name, cause.proven, cause.value) == ("boot_options", False, None)
    for data in (b"", b"\0" * 3, b"\0\0\0\0\xff\xff\0\0"):
        assert changed("Boot0001", sha384(data), variable("Boot0001", data)).value is None


@given(st.binary(max_size=80), st.integers(0, 16), st.integers(0, 64))
def test_any_data_of_an_event_is_read(tail: bytes, name: int, size: int) -> None:
    """Data of variables and items are read without errors, whatever they are."""
    payload = bytes(16) + struct.pack("<QQ", name, size) + tail
    for event_type in (0x80000001, 0xA, 6):
        for data in (payload, tail, b"QEMU FW CFG\0" + tail):
            event = Event(0, event_type, bytes(48), "", data)
            assert name_event(event)
            read_variable(event)


def test_load_options_without_nul_are_known() -> None:
    """GRUB's load options have no NUL at their end."""
    options = encode_options(f"initrd=initrd {CMDLINE}", terminated=False)
    cause = changed("load-options", sha384(options))
    assert (cause.name, cause.proven, cause.value) == ("option_terminator", True, 0)
    cause = changed("load-options", sha384(encode_options(f"kernel initrd=initrd {CMDLINE}")))
    assert (cause.name, cause.proven, cause.value) == ("shim", True, 1)


def test_boot_attempts_are_known() -> None:
    """A boot option that returned, and a second one, are extra events."""
    events = list(log_of(EXPECTED).events)
    at = position_of("exit-invocation")
    texts = (
        b"Returning from EFI Application from Boot Option",
        b"Calling EFI Application from Boot Option",
    )
    events[at:at] = [Event(1, 0x80000007, sha384(text), "", text) for text in texts]
    (found,) = find_differences(EXPECTED, evidence_of(EXPECTED, EventLog(events)))
    assert (found.event, found.kind) == ("exit-invocation", "extra")
    assert (found.logged_event, found.cause.name) == ("returning", "boot_attempt")


NO_MACHINE = GuestInputs()


@every_case(
    ("change", "cause", "proven", "value"),
    [
        (lambda: boot(shape=replace(SHAPE, memory_size=8 << 30)), "memory_size", True, 8 << 30),
        (
            lambda: boot(acpi=tables("10.0", replace(SHAPE, cpu_count=2))),
            *("cpu_count", True, 2),
        ),
        (lambda: boot(kernel=b"MZ" + arguments()["kernel"][2:-1] + b"x"), "kernel", False, None),
        (lambda: boot(cmdline="other"), "cmdline", False, None),
        (lambda: boot(smbios=SMBIOS.replace(b"QEMU", b"other")), "smbios", False, None),
    ],
)
def test_causes_without_inputs(
    change: Callable[[], object], cause: CauseName, proven: bool, value: int | None
) -> None:
    """Memory and machine are found from digests alone; the rest is only likely."""
    (found, *_) = find_differences(EXPECTED, change(), inputs=NO_MACHINE)  # type: ignore[arg-type]
    assert (found.cause.name, found.cause.proven, found.cause.value) == (cause, proven, value)


def test_machines_that_do_not_ship_with_the_package_are_compared_by_lengths() -> None:
    """Two machines with an HPET differ in vCPUs, which the loader script reveals."""
    base, other = (tables("10.0", replace(SHAPE, cpu_count=count)) for count in (4, 8))
    expected = tdx(**arguments(acpi=with_hpet(base)))
    (found,) = find_differences(expected, boot(acpi=with_hpet(other)))
    assert (found.cause.name, found.cause.proven, found.cause.value) == ("cpu_count", True, 8)
    (found,) = find_differences(expected, boot(acpi=other))
    assert (found.cause.name, found.cause.proven) == ("several_properties", True)


@pytest.mark.parametrize("line", ["10.0", "11.1"])
def test_vcpus_alone_grow_the_dsdt_as_assumed(line: str) -> None:
    """Between machines of a line that differ in vCPUs, nothing else is suspected."""
    machines = {
        entry.inputs: entry.files.list_tables()[1].length for entry in packaged_entries(line)
    }
    for inputs, length in machines.items():
        base = inputs._replace(cpu_count=8)
        if base in machines:
            shapes = [
                TableShape(size, one.cpu_count, hpet=False, edge_triggered=False)
                for one, size in ((base, machines[base]), (inputs, length))
            ]
            expected = "acpi_tables" if base == inputs else "cpu_count"
            assert _compare_shapes(*shapes).name in {expected, "pci_slots"}


def test_vcpus_with_other_devices_are_not_the_only_cause() -> None:
    """If the DSDT has more than the vCPUs explain, they are not called the cause."""
    base = TableShape(8500, 4, hpet=False, edge_triggered=False)
    other = TableShape(8500 + 4 * 86 + 17, 8, hpet=False, edge_triggered=False)
    cause = _compare_shapes(base, other)
    assert (cause.name, cause.proven) == ("several_properties", False)


@pytest.mark.parametrize(
    ("growth", "name"), [(17, "pci_slots"), (-34, "pci_slots"), (16, "acpi_tables")]
)
def test_growth_of_the_dsdt_is_only_likely(growth: int, name: str) -> None:
    """A length alone does not prove what was added."""
    cause = _explain_growth(growth)
    assert (cause.name, cause.proven, cause.value) == (name, False, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("growth", "name"),
    [
        (0, "acpi_tables"),
        (17, "pci_slots"),
        (-94, "cpu_count"),
        (110, "interrupt_trigger"),
        (-56, "hpet"),
        (1000, "acpi_tables"),
    ],
)
def test_growth_of_unknown_tables_is_only_likely(growth: int, name: str) -> None:
    """With tables of a kind that is not searched for, only the RSDT's offset is known."""
    rsdp = tables("10.0", SHAPE).rsdp
    (offset,) = struct.unpack_from("<I", rsdp, 16)
    moved = [rsdp[:16] + struct.pack("<I", offset + more) for more in (0, growth)]
    digests = [(sha384(b"numa"), sha384(one), sha384(b"tables")) for one in moved]
    cause = _from_lengths(*[find_acpi_shape(one) for one in digests])
    assert (cause.name, cause.proven, cause.value) == (name, False, None)


@pytest.mark.slow
def test_tables_of_another_vmm_are_named() -> None:
    """Without QEMU's RSDP nothing can be searched."""
    cause = changed("acpi-rsdp", sha384(b"other"))
    assert (cause.name, cause.proven) == ("acpi_tables", False)
    cause = changed("acpi-tables", sha384(b"other"))
    assert (cause.name, cause.proven) == ("acpi_tables", False)


def test_unknown_firmware_gives_no_memory() -> None:
    """Memory that no size explains is not guessed."""
    cause = changed("td-hob", sha384(b"other"))
    assert (cause.name, cause.proven, cause.value) == ("memory_size", False, None)
    assert isinstance(EXPECTED, ExpectedMeasurements)


def test_schema_lists_all_causes() -> None:
    """The documented schema of `measure --json` has every name of a cause and kind."""
    fields = schemas.read()["measure"]["$defs"]["difference"]["properties"]
    assert set(fields["cause"]["properties"]["name"]["enum"]) == set(get_args(CauseName))
    assert set(fields["kind"]["enum"]) == set(get_args(DifferenceKind))


@needs_qemu
def test_smm_of_qemu_is_found() -> None:
    """Tables of a QEMU with SMM differ in commands only, which are tried both ways."""
    options = "-nodefaults -machine q35,hpet=off -m 2G -smp 3"
    command = clean_command(options, installed_version()).command
    without = read_machine(command).acpi
    with_smm = read_machine(tuple(word.replace("smm=off", "smm=on") for word in command)).acpi
    for tables_of_one, tables_of_other, value in ((without, with_smm, 1), (with_smm, without, 0)):
        base = arguments(acpi=tables_of_one)
        found = find_differences(tdx(**base), boot(acpi=tables_of_other), inputs=inputs_of(base))
        (cause,) = [one.cause for one in found]
        assert (cause.name, cause.proven, cause.value) == ("smm", True, value)
