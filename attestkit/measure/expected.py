"""Expected measurements of a guest, with what stands behind each value."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit import _native
from attestkit.event_log import Event, EventLog
from attestkit.event_log.event_types import NO_ACTION
from attestkit.measure.firmware.mrtd import Mrtds, PageOrder

Basis = Literal["hardware", "published", "independent", "source"]
"""What confirms the rule by which a value is computed, strongest first.

- `hardware`: registers that hardware signed.
- `published`: values that others captured in a live guest and published.
- `independent`: another program computes the same.
- `source`: only the source code of firmware, VMM or kernel was read.
"""

NotProven = Literal[
    "acpi_tables_derived",  # from those of another line of QEMU, by a known rule
    "acpi_tables_from_log",  # no source of the tables: digests of the log, else none
    "acpi_tables_given",  # of a folder or of the caller, not made by a QEMU here
    "boot_options_from_log",  # of a boot from a disk, whose options are not given
    "grub_rtmr2",  # the commands that GRUB runs cannot be predicted
    "kernel_not_measured",  # SEV-SNP without hashes of the kernel
    "qemu_line_differs",  # the tables are of another line of QEMU than the host's
    "qemu_version_unknown",  # computed as for QEMU 9.1
    "separator_place",  # firmware of before edk2-stable202502: RTMR0 or RTMR1, by the log
    "shim_variables_from_log",
    "smbios_from_log",  # no SMBIOS table is given: digest of the log, else none
    "uki_stub_rtmr2",  # whether the stub of a unified kernel image measures, by the log
]
"""What is not proven about the values, as stable words."""

BootEvents: TypeAlias = "tuple[ExpectedEvent, ...]"

TDX_REGISTERS: Final = (0, 1, 2)
"""Registers with expected values. RTMR3 is extended at run time."""

_STRONGEST_FIRST: Final[tuple[Basis, ...]] = ("hardware", "published", "independent", "source")
# Firmware measures the SMBIOS table as EFI_HANDOFF_TABLES or EFI_HANDOFF_TABLES2.
_SAME_TYPE: Final = {0x8000000B: 0x80000009}


class ExpectedEvent(NamedTuple):
    """One event that a boot extends into a register.

    Attributes:
        register: 0 to 3, of RTMR0 to RTMR3.
        name: Short name, such as `td-hob` or `acpi-tables`.
        event_type: TCG event type.
        digest: SHA-384; None if it has to be taken from the event log.
        basis: What confirms the rule.
    """

    register: int
    name: str
    event_type: int
    digest: bytes | None
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMeasurements:
    """Expected measurements of a guest. Immutable.

    Attributes:
        platform: `tdx` or `snp`.
        events: Events of RTMR0 to RTMR2, in order within each register; none on SEV-SNP.
        other_events: Other possible lists of events, of which a log has one.
        mrtds: MRTD for each order of pages.
        page_order: The order that the version of QEMU or the VM configuration suggests.
        single_events: Events to look for in the log, in no promised order, of a boot by GRUB.
        incomplete: Registers of which not all events are known.
        launch_digest: MEASUREMENT of an SEV-SNP guest, 48 bytes.
        launch_basis: What confirms the rules of the launch digest.
        os_image_hash: Of a dstack image, 32 bytes.
        not_proven: What is not proven about the values.
        inputs: SHA-256 of each input file, by name, such as `firmware`.
        versions: Versions of what the values are for, by name, such as `qemu`.
    """

    platform: Literal["tdx", "snp"]
    events: BootEvents = ()
    other_events: tuple[BootEvents, ...] = ()
    mrtds: Mrtds | None = None
    page_order: PageOrder = "single_pass"
    single_events: BootEvents = ()
    incomplete: tuple[int, ...] = ()
    launch_digest: bytes | None = None
    launch_basis: Basis = "source"
    os_image_hash: bytes | None = None
    not_proven: tuple[NotProven, ...] = ()
    inputs: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def mrtd(self) -> bytes | None:
        """MRTD for `page_order`."""
        return None if self.mrtds is None else self.mrtds.of(self.page_order)

    @property
    def rtmrs(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """RTMR0 to RTMR2; None where a digest is missing, or `other_events` differ."""
        zero, one, two = (self._register(number) for number in TDX_REGISTERS)
        return zero, one, two

    @property
    def bases(self) -> Mapping[str, Basis]:
        """What confirms each value: the weakest basis of its events, by name such as `rtmr0`."""
        if self.platform == "snp":
            return {"launch_digest": self.launch_basis}
        found: dict[str, Basis] = {"mrtd": "independent"}
        for number in TDX_REGISTERS:
            events = [event for event in self.events if event.register == number]
            found[f"rtmr{number}"] = weakest([event.basis for event in events])
        return found

    def with_log_digests(self, log: EventLog) -> "ExpectedMeasurements":
        """Return the measurements with the digests that only an event log has.

        Of several possible lists of events, the one that has most in common with the log is chosen.
        A digest of the log is used only if the event at this place has the expected type; it is
        worth as much as the log, which a quote has to confirm.

        Args:
            log: Event log of a guest.
        """
        if self.platform == "snp":
            return self
        logged = [
            [event for event in log.events if _extends(event, number)] for number in TDX_REGISTERS
        ]
        candidates = (self.events, *self.other_events)
        events = max(candidates, key=lambda events: _common(events, logged))
        return replace(self, events=_fill(events, logged), other_events=())

    def _register(self, number: int) -> bytes | None:
        if self.platform == "snp" or number in self.incomplete:
            return None
        values = {replay(events, number) for events in (self.events, *self.other_events)}
        return values.pop() if len(values) == 1 else None


def replay(events: Iterable[ExpectedEvent], register: int) -> bytes | None:
    """Return the value of a register after its events; None if one has no digest."""
    digests = [event.digest for event in events if event.register == register]
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    return _native.replay(bytes([register] * len(known)), b"".join(known))[register]


def weakest(bases: Iterable[Basis]) -> Basis:
    """Return the weakest basis; `hardware` for none."""
    return max(bases, key=_STRONGEST_FIRST.index, default="hardware")


def _extends(event: Event, register: int) -> bool:
    return event.register == register and event.event_type != NO_ACTION


def _by_register(events: Iterable[ExpectedEvent]) -> list[list[ExpectedEvent]]:
    listed = list(events)
    return [[event for event in listed if event.register == number] for number in TDX_REGISTERS]


def _common(events: BootEvents, logged: Sequence[Sequence[Event]]) -> int:
    """Return how many events are at their place in a log, less those that are not."""
    score = 0
    for expected, found in zip(_by_register(events), logged, strict=True):
        score -= abs(len(expected) - len(found))
        for one, other in zip(expected, found, strict=False):
            same = one.digest == other.digest if one.digest else _same_type(one, other)
            score += 1 if same else -1
    return score


def _fill(events: BootEvents, logged: Sequence[Sequence[Event]]) -> BootEvents:
    """Return events with missing digests from the places in a log."""
    filled: list[ExpectedEvent] = []
    for expected, found in zip(_by_register(events), logged, strict=True):
        for place, event in enumerate(expected):
            if event.digest is None and place < len(found) and _same_type(event, found[place]):
                filled.append(event._replace(digest=found[place].digest, basis="source"))
            else:
                filled.append(event)
    return tuple(filled)


def _same_type(expected: ExpectedEvent, found: Event) -> bool:
    types = [_SAME_TYPE.get(one.event_type, one.event_type) for one in (expected, found)]
    return types[0] == types[1]
