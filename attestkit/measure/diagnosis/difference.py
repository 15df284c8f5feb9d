"""Differences between expected measurements and evidence, and what causes them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from attestkit.event_log import Event
from attestkit.measure.expected import ExpectedEvent, comparable_type, is_same_type

DifferenceKind = Literal["changed", "cut", "extra", "log", "missing", "value"]
"""How evidence differs.

- `changed`: the digest of an event is not the expected one.
- `cut`: the log ends before an event.
- `extra`: the log has an event that is not expected.
- `missing`: the log lacks an event, and continues with a later one.
- `log`: the log does not replay to the register in the quote; nothing else is compared.
- `value`: a value without events, such as MRTD, or a register of which the log has no events.
"""

CauseName = Literal[
    # Of the evidence
    "log_continues",  # the quote is older than the end of the log
    "log_not_of_quote",
    "log_without_events",  # shortened, as in certificates
    "other_platform",
    # Of the firmware
    "firmware_image",
    "firmware_release",  # which events there are
    "page_order",
    "secure_boot",
    "secure_boot_keys",
    "temporary_memory",  # where the firmware has it: another build
    "variable_store",
    # Of the machine
    "acpi_hotplug",
    "acpi_tables",
    "boot_menu",
    "boot_options",
    "cpu_count",
    "device_boot_order",
    "direct_boot",
    "fw_cfg_item",
    "hpet",
    "interrupt_trigger",
    "low_memory",
    "machine_name",
    "memory_size",
    "pci_slots",
    "pci_window",
    "pic",
    "processor_id",
    "qemu_line",
    "root_ports",
    "several_properties",
    "smbios",
    "smm",
    # Of what is booted
    "boot_attempt",
    "boot_image",
    "boot_incomplete",
    "boot_loader",
    "cmdline",
    "initrd",
    "initrd_option",
    "initrd_presence",
    "kernel",
    "kernel_patched",
    "kernel_unpatched",
    "option_terminator",
    "partition_table",
    "shim",
    "uki_section",
    "video_mode",
    # SEV-SNP
    "cpu_type",
    "guest_features",
    "kernel_hashes",
    "launch_inputs",
    "vmm",
    "unknown",
]
"""Stable names of causes."""


class Cause(NamedTuple):
    """Cause of a difference.

    Attributes:
        name: Stable name, for programs; see `CauseName`.
        text: Explanation for people, one sentence.
        proven: Whether a recomputation with this cause gives the digest in the evidence. Otherwise
            the text says what usually causes such a difference.
        value: The guest's value of the property, such as bytes of memory, number of vCPUs, 1 or 0
            for yes or no, or release line of QEMU; None if it was not found.
    """

    name: CauseName
    text: str
    proven: bool = False
    value: int | str | None = None

    @classmethod
    def found(cls, name: CauseName, text: str, value: int | str | None = None) -> "Cause":
        """Return a cause with `proven` set; `text` is one sentence, `value` the guest's value."""
        return cls(name, text, proven=True, value=value)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of a register; later events of it are not compared.

    Attributes:
        register: Name of the value: `mrtd`, `rtmr0` to `rtmr2`, or `launch_digest`; `rtmr3` only
            with the kind `log`.
        position: Index among the events of the register, from 0; None without events.
        event: Name of the expected event at that position; None after the last one.
        kind: How the evidence differs.
        expected: Expected digest or value; None after the last event.
        actual: Digest or value in the evidence; None after the last event of the log.
        logged_event: Name of the event in the log, from its digest or data; None after the last.
        cause: The cause, confirmed or likely; see `Cause.proven`.
    """

    register: str
    position: int | None
    event: str | None
    kind: DifferenceKind
    expected: bytes | None
    actual: bytes | None
    logged_event: str | None
    cause: Cause

    def __str__(self) -> str:
        """Return the difference and its cause in one line."""
        at = "" if self.position is None else f" event {self.position}"
        name = f" {self.event}" if self.event else ""
        how = "" if self.cause.proven else "likely cause: "
        return f"{self.register}{at}{name}: {self.kind}; {how}{self.cause.text}"

    def to_dict(self) -> dict[str, Any]:
        """Return the members by name as values for JSON; digests are hex, `cause` is an object."""
        return asdict(self) | {
            "expected": None if self.expected is None else self.expected.hex(),
            "actual": None if self.actual is None else self.actual.hex(),
            "cause": self.cause._asdict(),
        }


def value_difference(
    register: str,
    expected: bytes | None,
    actual: bytes | None,
    cause: Cause,
    kind: DifferenceKind = "value",
) -> Difference:
    """Return the difference of a value as a whole, not of one of its events.

    Args:
        register: Name of the value: `mrtd`, `rtmr0` to `rtmr3`, or `launch_digest`.
        expected: Expected value; None if unknown.
        actual: Value in the evidence; None if unknown.
        cause: Cause of the difference.
        kind: How the evidence differs.
    """
    return Difference(register, None, None, kind, expected, actual, None, cause)


EventDifference = Literal["changed", "cut", "extra", "missing"]


class FirstDifference(NamedTuple):
    """The first position, from 0, at which the events of a register differ, and both events.

    An event is None after the end of its sequence.
    """

    position: int
    kind: EventDifference
    expected: ExpectedEvent | None
    logged: Event | None


def first_difference(
    expected: Sequence[ExpectedEvent], logged: Sequence[Event]
) -> FirstDifference | None:
    """Return the first difference between the events of a register; None if they are equal.

    An expected event without a digest equals any event of its type.
    """
    for position, (event, found) in enumerate(zip(expected, logged, strict=False)):
        if not _is_same(event, found):
            return FirstDifference(position, _kind(expected, logged, position), event, found)
    position = min(len(expected), len(logged))
    if len(logged) < len(expected):
        return FirstDifference(position, "cut", expected[position], None)
    if len(logged) > len(expected):
        return FirstDifference(position, "extra", None, logged[position])
    return None


def _is_same(expected: ExpectedEvent, logged: Event) -> bool:
    if expected.digest is not None:
        return expected.digest == logged.digest
    return is_same_type(expected, logged)


def _kind(
    expected: Sequence[ExpectedEvent], logged: Sequence[Event], position: int
) -> EventDifference:
    """Return whether the event at a position is extra, missing or changed in the log.

    This is decided from later events, which are compared by type and digest: BootOrder and an item
    of fw_cfg may have one digest.
    """
    later_expected = {_identity(event) for event in expected[position + 1 :]}
    later_logged = {_identity(event) for event in logged[position + 1 :]}
    is_expected_later = _identity(logged[position]) in later_expected
    is_logged_later = _identity(expected[position]) in later_logged
    if is_expected_later and not is_logged_later:
        return "missing"
    if is_logged_later and not is_expected_later:
        return "extra"
    return "changed"


def _identity(event: ExpectedEvent | Event) -> tuple[int, bytes | None]:
    return comparable_type(event), event.digest
