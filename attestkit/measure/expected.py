"""Expected measurements of a guest, with the basis of each value.

The events that a boot is expected to extend into registers, the registers that follow from them,
and an appraisal policy in TOML with these reference values.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit import _native
from attestkit._sanitize import printable
from attestkit.errors import UsageError
from attestkit.event_log import Event, EventLog
from attestkit.event_log.event_types import HANDOFF_TABLES, HANDOFF_TABLES2, NO_ACTION
from attestkit.measure.firmware.tdvf import Mrtds, PageOrder

_PLATFORMS: Final = {"tdx": "dstack-tdx", "snp": "dstack-amd-sev-snp"}
_HEADER: Final = """\
# Appraisal policy with reference values that attestkit measure computed from files.
# All rules must be met. RTMR3, which the guest extends at run time, is not among them.
"""
_BASES: Final = {
    "hardware": "the rules are confirmed by registers that hardware signed",
    "published": "the rules are confirmed by values that others captured in a live guest",
    "independent": "the rules are confirmed by another program, not by hardware",
    "source": "the rules are from reading source code only; compare with evidence first",
}
_MEANINGS: Final = {
    "acpi_tables_derived": "the ACPI tables are derived from those of another line of QEMU",
    "acpi_tables_from_log": "the digests of the ACPI tables are from a log, or unknown",
    "acpi_tables_given": "the ACPI tables are from a folder, not made by a QEMU here",
    "acpi_tables_not_measured": "the firmware does not measure the ACPI tables; no rule pins them",
    "boot_options_from_log": "the boot options of devices are from a log, or unknown",
    "boot_order_from_log": "the order of boot devices is from a log, or unknown",
    "grub_rtmr2": "RTMR2 depends on the commands that GRUB runs",
    "kernel_not_measured": "kernel, initrd and command line are not measured at launch",
    "qemu_line_differs": "the ACPI tables are of another line of QEMU than the host's",
    "qemu_version_unknown": "the version of QEMU is not known; 9.1 is assumed",
    "separator_place": "the firmware has its second separator in RTMR0 or in RTMR1",
    "shim_variables_from_log": "the variables of shim are from a log, or unknown",
    "smbios_from_log": "the digest of the SMBIOS table is from a log, or unknown",
    "uki_stub_rtmr2": "whether the stub of the kernel image measures is not known",
}


class PinnedValue(NamedTuple):
    """A reference value of a policy.

    Attributes:
        name: Name in the policy, such as `mrtd`.
        values: The accepted values, 32 or 48 bytes each; empty if unknown.
        basis: What confirms the value; see `Basis`.
        comment: Line that the policy has above the value; may be empty.
    """

    name: str
    values: tuple[bytes, ...]
    basis: str
    comment: str = ""


def describe_gap(word: str) -> str:
    """Return the text that explains `word`, an item of `ExpectedMeasurements.not_proven`.

    An unknown word raises KeyError.
    """
    return _MEANINGS[word]


def write_policy(
    platform: str,
    values: Iterable[PinnedValue],
    *,
    inputs: Mapping[str, bytes],
    settings: Mapping[str, str],
    not_proven: Sequence[str],
) -> str:
    """Return an appraisal policy in TOML: the default preset, and reference values with comments.

    Args:
        platform: `tdx` or `snp`.
        values: Reference values, named as in the policy.
        inputs: SHA-256 of each input file, by name.
        settings: Versions, machine and command line that the values are for, by name.
        not_proven: Items of `ExpectedMeasurements.not_proven`.
    """
    lines = [_HEADER, "# Computed from (SHA-256):"]
    lines += [f"#   {printable(name)}: {digest.hex()}" for name, digest in inputs.items()]
    lines += [f"# {name}: {printable(text)}" for name, text in settings.items()]
    for word in not_proven:
        lines.append(f"# Not proven: {word}: {_MEANINGS[word]}")
    lines += ["", 'preset = "default"', f'platforms = ["{_PLATFORMS[platform]}"]', ""]
    lines.append("[reference_values]")
    for value in values:
        lines += _value_lines(value)
    return "\n".join(lines) + "\n"


def _value_lines(value: PinnedValue) -> list[str]:
    if not value.values:
        return [f"# {value.name} is not pinned: its value cannot be computed; see Not proven."]
    lines = [f"# {value.basis}: {_BASES[value.basis]}."]
    if value.comment:
        lines.append(f"# {value.comment}")
    texts = [f'"{one.hex()}"' for one in value.values]
    if len(texts) == 1:
        return [*lines, f"{value.name} = {texts[0]}"]
    return [*lines, f"{value.name} = [", *(f"  {text}," for text in texts), "]"]


Basis = Literal["hardware", "published", "independent", "source"]
"""What confirms the rule by which a value is computed, strongest first.

- `hardware`: registers that hardware signed.
- `published`: values that others captured in a live guest and published.
- `independent`: another program computes the same.
- `source`: only the source code of firmware, VMM or kernel was read.
"""

BootEvents: TypeAlias = "tuple[ExpectedEvent, ...]"

_STRONGEST_FIRST: Final[tuple[Basis, ...]] = ("hardware", "published", "independent", "source")


class ExpectedEvent(NamedTuple):
    """One event that a boot extends into a register.

    Attributes:
        register: 0 to 3, of RTMR0 to RTMR3.
        name: Short name, such as `td-hob` or `acpi-tables`.
        event_type: TCG event type, such as 4 (EV_SEPARATOR).
        digest: SHA-384, 48 bytes; None if it has to be taken from the event log.
        basis: What confirms the rule by which the event is computed.
    """

    register: int
    name: str
    event_type: int
    digest: bytes | None
    basis: Basis


def replay(events: Iterable[ExpectedEvent], register: int) -> bytes | None:
    """Return the value of register 0 to 3 after its events, 48 bytes.

    Events of other registers are skipped. None if one of its events has no digest.
    """
    digests = [event.digest for event in events if event.register == register]
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    return _native.replay(bytes([register] * len(known)), b"".join(known))[register]


def weakest(bases: Iterable[Basis]) -> Basis:
    """Return the weakest of several bases; `hardware` for an empty iterable."""
    return _STRONGEST_FIRST[max([_STRONGEST_FIRST.index(basis) for basis in bases], default=0)]


NotProven = Literal[
    "acpi_tables_derived",  # from those of another line of QEMU, by a known rule
    "acpi_tables_from_log",  # no source of the tables: digests of the log, else none
    "acpi_tables_given",  # of a folder or of the caller, not made by a QEMU here
    "acpi_tables_not_measured",  # by firmware before edk2-stable202302: no register has them
    "boot_options_from_log",  # of a boot from a disk, whose options are not given
    "boot_order_from_log",  # of devices whose order QEMU's stand-ins do not have
    "grub_rtmr2",  # the commands that GRUB runs cannot be predicted
    "kernel_not_measured",  # SEV-SNP without hashes of the kernel
    "qemu_line_differs",  # the tables are of another line of QEMU than the host's
    "qemu_version_unknown",  # computed as for QEMU 9.1
    "separator_place",  # firmware of before edk2-stable202502: RTMR0 or RTMR1, by the log
    "shim_variables_from_log",
    "smbios_from_log",  # no SMBIOS table, or strings of the firmware: digest of the log, else none
    "uki_stub_rtmr2",  # whether the stub of a unified kernel image measures, by the log
]
"""What no basis confirms about the values, or is missing in them, as stable words."""

TDX_REGISTERS: Final = (0, 1, 2)
"""Registers with expected values. RTMR3 is extended at run time."""

_ORDERS: Final = "For both orders of pages, which depend on the host's kernel: the firmware is one."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMeasurements:
    """Expected measurements of a guest. Immutable.

    Attributes:
        platform: `tdx` or `snp`.
        events: Events of RTMR0 to RTMR2, in order within each register; none on SEV-SNP.
        other_events: Lists of events that are possible instead of `events`.
        mrtds: MRTD for each order in which a VMM may add and measure pages; None on SEV-SNP.
        page_order: Whether QEMU adds and measures each page of the firmware in turn
            (`single_pass`), or adds all before it measures them (`two_pass`): as the VM
            configuration states, else as the version of QEMU does.
        page_order_known: Whether the VM configuration states the page order.
        single_events: Events of a boot by GRUB that its registers may have at any position.
        incomplete: Numbers of the RTMRs of which not all events are known.
        launch_digest: MEASUREMENT of an SEV-SNP guest, 48 bytes; None on TDX.
        launch_basis: What confirms the rules of the launch digest; see `Basis`.
        os_image_hash: SHA-256 of the list of checksums of a dstack image, 32 bytes; None without
            an image.
        not_proven: Stable words for gaps in the values or their basis; see `describe_gap`.
        inputs: SHA-256 of each input file, by name, such as `firmware`.
        settings: Versions, machine and command line that the values are for, by name.
    """

    platform: Literal["tdx", "snp"]
    events: BootEvents = ()
    other_events: tuple[BootEvents, ...] = ()
    mrtds: Mrtds | None = None
    page_order: PageOrder = "single_pass"
    page_order_known: bool = False
    single_events: BootEvents = ()
    incomplete: tuple[int, ...] = ()
    launch_digest: bytes | None = None
    launch_basis: Basis = "source"
    os_image_hash: bytes | None = None
    not_proven: tuple[NotProven, ...] = ()
    inputs: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def mrtd(self) -> bytes | None:
        """MRTD for `page_order`, 48 bytes; None if unknown."""
        return None if self.mrtds is None else self.mrtds.of(self.page_order)

    @property
    def rtmrs(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """RTMR0 to RTMR2, 48 bytes each.

        None replaces the value of a register if a digest is missing, `incomplete` names it, or
        `other_events` give another value; on SEV-SNP that of each.
        """
        zero, one, two = (self._register(number) for number in TDX_REGISTERS)
        return zero, one, two

    @property
    def bases(self) -> Mapping[str, Basis]:
        """Basis of each value, the weakest of its events, by name such as `rtmr0`."""
        if self.platform == "snp":
            return {"launch_digest": self.launch_basis}
        found: dict[str, Basis] = {"mrtd": "independent"}
        for number in TDX_REGISTERS:
            events = [event for event in self.events if event.register == number]
            found[f"rtmr{number}"] = weakest(one.basis for one in events) if events else "source"
        return found

    def reference_values(self) -> dict[str, tuple[bytes, ...]]:
        """Return the accepted values by their name in the appraisal policy; () for unknown ones.

        MRTD has a value for each order in which a VMM may add and measure pages, unless the VM
        configuration states it: both values are of the same firmware.
        """
        if self.platform == "snp":
            return {"measurement": () if self.launch_digest is None else (self.launch_digest,)}
        orders: tuple[PageOrder, ...] = ("single_pass", "two_pass")
        mrtds = [] if self.mrtds is None else [self.mrtds.of(order) for order in orders]
        if self.mrtd is not None:
            mrtds = [self.mrtd] if self.page_order_known else [self.mrtd, *mrtds]
        found = {"mrtd": tuple(dict.fromkeys(mrtds))}
        for number in TDX_REGISTERS:
            found[f"rtmr{number}"] = self._possible(number)
        return found

    def to_toml(self) -> str:
        """Return an appraisal policy in TOML that accepts the reference values, with comments.

        Raises:
            UsageError: If no value can be computed.
        """
        bases, references = self.bases, self.reference_values()
        if not any(references.values()):
            message = "expected measurements: no value can be computed from these inputs"
            raise UsageError(f"{message}; see not_proven for what is missing", reason="missing")
        two = not self.page_order_known
        values = [
            PinnedValue(
                name,
                found,
                bases["launch_digest" if name == "measurement" else name],
                _ORDERS if name == "mrtd" and two else "",
            )
            for name, found in references.items()
        ]
        return write_policy(
            self.platform,
            values,
            inputs=self._all_inputs(),
            settings=self.settings,
            not_proven=self.not_proven,
        )

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex.

        They are platform, accepted values with their basis, order of pages, gaps (`not_proven`),
        digests of the inputs, hash of the OS image, settings, and events.
        """
        names = {"measurement": "launch_digest"}
        values = {
            name: {
                "accepted": [value.hex() for value in found],
                "basis": self.bases[names.get(name, name)],
            }
            for name, found in self.reference_values().items()
        }
        return {
            "platform": self.platform,
            "reference_values": values,
            "page_order": self.page_order if self.platform == "tdx" else None,
            "not_proven": {word: describe_gap(word) for word in self.not_proven},
            "inputs": {name: digest.hex() for name, digest in self.inputs.items()},
            "os_image_hash": None if self.os_image_hash is None else self.os_image_hash.hex(),
            "settings": dict(self.settings),
            "events": [_event_dict(event) for event in self.events],
            "other_events": [[_event_dict(one) for one in events] for events in self.other_events],
            "single_events": [_event_dict(event) for event in self.single_events],
        }

    def to_json(self) -> str:
        """Return the values of `to_dict` as the text of a JSON object, indented."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def with_log_digests(self, log: EventLog) -> "ExpectedMeasurements":
        """Return the measurements with unknown digests taken from an event log.

        Of several possible lists of events, the one that has most in common with the log is chosen.
        A digest of the log is used only if the event at the same index has the expected type. It
        is untrusted unless a quote confirms the log. On SEV-SNP the measurements are unchanged.

        Args:
            log: Event log of a guest.
        """
        if self.platform == "snp":
            return self
        logged = [events_of(log, number) for number in TDX_REGISTERS]
        events = max((self.events, *self.other_events), key=lambda events: _common(events, logged))
        return replace(self, events=_fill(events, logged), other_events=())

    def _register(self, number: int) -> bytes | None:
        values = self._possible(number)
        return values[0] if len(values) == 1 else None

    def _possible(self, number: int) -> tuple[bytes, ...]:
        """Return the possible values of RTMR `number`, 48 bytes each; () if any is unknown."""
        if self.platform == "snp" or number in self.incomplete:
            return ()
        values = [replay(events, number) for events in (self.events, *self.other_events)]
        known = tuple(dict.fromkeys(value for value in values if value is not None))
        return () if None in values else known

    def _all_inputs(self) -> dict[str, bytes]:
        image = {} if self.os_image_hash is None else {"sha256sum.txt": self.os_image_hash}
        return image | dict(self.inputs)


def events_of(log: EventLog, register: int) -> list[Event]:
    """Return the events of a log that extend a register, numbered 0 to 3 as the RTMRs."""
    return [
        event
        for event in log.events
        if event.register == register and event.event_type != NO_ACTION
    ]


def comparable_type(event: ExpectedEvent | Event) -> int:
    """Return the TCG event type of an event; HANDOFF_TABLES2 counts as HANDOFF_TABLES.

    Releases of edk2 differ in which of both the SMBIOS table has.
    """
    return HANDOFF_TABLES if event.event_type == HANDOFF_TABLES2 else event.event_type


def is_same_type(expected: ExpectedEvent, logged: Event) -> bool:
    """Return whether events have the same `comparable_type`."""
    return comparable_type(expected) == comparable_type(logged)


def _event_dict(event: ExpectedEvent) -> dict[str, object]:
    digest = None if event.digest is None else event.digest.hex()
    return {**event._asdict(), "digest": digest}


def _by_register(events: Iterable[ExpectedEvent]) -> list[list[ExpectedEvent]]:
    listed = list(events)
    return [[event for event in listed if event.register == number] for number in TDX_REGISTERS]


def _common(events: BootEvents, logged: Sequence[Sequence[Event]]) -> int:
    """Return the number of events that equal the log's at the same index, minus the others.

    `logged` has the events of each register, that of RTMR0 first.
    """
    score = 0
    for expected, found in zip(_by_register(events), logged, strict=True):
        score -= abs(len(expected) - len(found))
        for one, other in zip(expected, found, strict=False):
            same = one.digest == other.digest if one.digest else is_same_type(one, other)
            score += 1 if same else -1
    return score


def _fill(events: BootEvents, logged: Sequence[Sequence[Event]]) -> BootEvents:
    """Return the events; a missing digest is that of the log's event at the same index.

    `logged` has the events of each register, that of RTMR0 first.
    """
    filled: list[ExpectedEvent] = []
    for expected, found in zip(_by_register(events), logged, strict=True):
        for place, event in enumerate(expected):
            if event.digest is None and place < len(found) and is_same_type(event, found[place]):
                filled.append(event._replace(digest=found[place].digest, basis="source"))
            else:
                filled.append(event)
    return tuple(filled)
