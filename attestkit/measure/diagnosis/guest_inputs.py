"""Inputs of the expected measurements of a guest, for the search of a cause."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.td_hob import memory_ranges
from attestkit.event_log import Event
from attestkit.event_log.event import ACPI_LABELS
from attestkit.measure.acpi.acpi_tables import AcpiTables
from attestkit.measure.diagnosis import guest_shape
from attestkit.measure.diagnosis.difference import Cause
from attestkit.measure.diagnosis.logged_event import acpi_digests
from attestkit.measure.expected import BootEvents, ExpectedEvent
from attestkit.measure.firmware.tdvf import TdvfSection, read_tdvf_sections
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.rtmr0_events import build_td_hob


@dataclass(frozen=True, kw_only=True)
class GuestInputs:
    """Inputs of `attestkit.measure.tdx`, as far as they are known; all are optional.

    Attributes:
        firmware: Image of OVMF.
        kernel: Linux kernel of a direct boot.
        initrd: Initrd of the kernel.
        cmdline: Command line of the kernel.
        shape: Shape of the machine.
        acpi: ACPI tables.
        smbios: SMBIOS table that QEMU gives the firmware.
    """

    firmware: bytes | None = None
    kernel: bytes | None = None
    initrd: bytes | None = None
    cmdline: str = ""
    shape: MachineShape | None = None
    acpi: AcpiTables | None = None
    smbios: bytes | None = None


class ComparedGuest:
    """An expected boot and a logged one; memory and ACPI properties of both, found on first use."""

    def __init__(
        self, expected: Iterable[ExpectedEvent], rtmr0: Sequence[Event], inputs: GuestInputs
    ) -> None:
        """Store the events of both boots.

        Args:
            expected: All expected events.
            rtmr0: Logged events of RTMR0.
            inputs: What the expected events were computed from.
        """
        self.expected: BootEvents = tuple(expected)
        self.rtmr0 = rtmr0
        self.inputs = inputs

    @cached_property
    def sections(self) -> tuple[TdvfSection, ...] | None:
        """Sections of the firmware; None without a firmware image in `inputs`.

        Raises:
            FormatError: If the image is malformed.
        """
        image = self.inputs.firmware
        return None if image is None else read_tdvf_sections(image)

    @cached_property
    def expected_memory(self) -> guest_shape.FoundMemory | None:
        """Memory of the expected machine; None if no size gives the expected TD HOB.

        Raises:
            FormatError: If the firmware image in `inputs` is malformed.
            UsageError: If the memory in `inputs` is too small for the firmware.
        """
        digest = self.expected_digest("td-hob")
        if digest is None:
            return None
        if self.inputs.shape is not None:
            size = self.inputs.shape.memory_size
            for sections in [self.sections] if self.sections else guest_shape.ovmf_sections():
                if sha384(build_td_hob(sections, memory_ranges(size))) == digest:
                    return guest_shape.FoundMemory(size, sections)
        return guest_shape.find_memory(digest, self.sections)

    @cached_property
    def logged_memory(self) -> guest_shape.FoundMemory | None:
        """Memory of the logged machine, found from its TD HOB; None if no size gives the TD HOB.

        It is that of the expected firmware's sections, else that of a known build of OVMF.

        Raises:
            FormatError, UsageError: As for `expected_memory`.
        """
        digest = next((event.digest for event in self.rtmr0), b"")  # the TD HOB is the first
        if digest == self.expected_digest("td-hob"):
            return self.expected_memory
        return guest_shape.find_memory(digest, self.sections) or guest_shape.find_memory(digest)

    @cached_property
    def expected_acpi(self) -> guest_shape.AcpiShape | None:
        """Properties of the expected machine, found from its ACPI digests; None without these."""
        loader, rsdp, tables = (self.expected_digest(name) for name in ACPI_LABELS)
        if loader is None or rsdp is None or tables is None:
            return None
        return guest_shape.find_acpi_shape((loader, rsdp, tables))

    @cached_property
    def logged_acpi(self) -> guest_shape.AcpiShape | None:
        """Properties of the logged machine, found from its ACPI digests; None without these."""
        digests = acpi_digests(self.rtmr0)
        return None if digests is None else guest_shape.find_acpi_shape(digests)

    def expected_digest(self, name: str) -> bytes | None:
        """Return the digest, 48 bytes, of the first expected event with this name.

        None without such an event, or if its digest is unknown.
        """
        return next((event.digest for event in self.expected if event.name == name), None)


Search: TypeAlias = Callable[[ComparedGuest, Event, str], Cause]
"""Function of guest, logged event and event name that finds why the event's digest differs."""
