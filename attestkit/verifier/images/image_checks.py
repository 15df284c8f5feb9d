"""Comparison of a TD's registers and ACPI tables with those of an image's files, and of QEMU.

The digests of the tables are those of the tables that ship with attestkit: no QEMU is run for
evidence.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from attestkit._formats import strict_json
from attestkit.attestation.wire.evidence_parts import is_acpi_data
from attestkit.errors import FormatError, UnsupportedError, UsageError, VerificationError
from attestkit.event_log.event import ACPI_LABELS, WireEvent
from attestkit.event_log.event_types import NO_ACTION
from attestkit.measure.acpi import find_tables
from attestkit.measure.expected import ExpectedEvent, replay
from attestkit.measure.kernel.linux_kernel import QemuRelease
from attestkit.measure.machine_shape import MachineShape
from attestkit.quote import TdQuoteBody
from attestkit.verifier.images.image_store import MeasuredImage

AcpiDigests: TypeAlias = tuple[bytes, bytes, bytes]
"""SHA-384 of loader script, RSDP and tables, in the order of measurement."""

_MOST_SHAPES: Final = 256  # whose digests stay in memory
_FILES: Final = {  # what an event measures, for errors
    "td-hob": "memory_size of vm_config, and the image's firmware",
    "cfv": "the image's firmware",
    "kernel": "the image's kernel",
    "load-options": "the image's cmdline",
    "initrd": "the image's initrd",
}


class ImageProof(NamedTuple):
    """Facts about the boot of a TD that its registers confirm.

    Attributes:
        acpi_tables: Whether the ACPI tables are those that QEMU makes for the VM's shape; False if
            these are unknown.
        from_log: Names of events that were not checked: their digests are the event log's, because
            the host chooses what they measure.
    """

    acpi_tables: bool
    from_log: tuple[str, ...] = ()


def check_tdx_image(
    image: MeasuredImage,
    vm_config: Mapping[str, Any],
    body: TdQuoteBody,
    events: Sequence[WireEvent],
) -> ImageProof:
    """Check that MRTD and RTMR0 to RTMR2 are those of an image; return what they confirm.

    Args:
        image: Digests of the image that the evidence names.
        vm_config: `fields` of the `VmConfig` in the evidence.
        body: Body of the quote, authenticated.
        events: Event log, from which digests of the host's tables are taken.

    Raises:
        VerificationError: If a register differs, or the expected ACPI tables are known and differ.
        FormatError: If the configuration is malformed, or the image is not for TDs.
        UnsupportedError: If neither the log nor attestkit's tables have a digest that RTMR0 needs.
        ConfigError: If the image's files have to be read again, and are altered.
    """
    memory_size = strict_json.number_field(vm_config, "memory_size", 63)
    qemu = _qemu_release(vm_config)
    if image.mrtds.order_of(body.mrtd) is None:
        raise _mismatch("MRTD", image.mrtds.single_pass, body.mrtd, "the image's firmware differs")
    second_separator, proof = _check_rtmr0(image, vm_config, memory_size, body.rtmr0, events)
    kernel_events = image.kernel_events(memory_size, qemu, second_separator=second_separator)
    for register, quoted in ((1, body.rtmr1), (2, body.rtmr2)):
        expected = [event for event in kernel_events if event.register == register]
        computed = replay(expected, register) or b""
        if computed != quoted:
            cause = _first_difference(expected, _logged(events, register))
            raise _mismatch(f"RTMR{register}", computed, quoted, cause)
    return proof


def check_acpi_tables(vm_config: Mapping[str, Any], events: Sequence[WireEvent]) -> bool:
    """Return True if the log's ACPI tables are those of the VM's shape, False if unknown.

    Args:
        vm_config: `fields` of the `VmConfig` in the evidence.
        events: Event log whose ACPI digests RTMR0 contains.

    Raises:
        VerificationError: If the tables of the shape are known, and the log has others.
    """
    logged = _acpi_digests(events)
    tables = recompute_tables(vm_config)
    if logged in tables.digests:
        return True
    if tables.conclusive:
        raise _other_tables()
    return False


class _FirmwareBoot(NamedTuple):
    """Expected events of RTMR0; the second EV_SEPARATOR is one of them, or is in RTMR1."""

    second_separator: bool  # whether it is in RTMR0, and not in RTMR1
    events: tuple[ExpectedEvent, ...]


def _check_rtmr0(
    image: MeasuredImage,
    vm_config: Mapping[str, Any],
    memory_size: int,
    quoted: bytes,
    events: Sequence[WireEvent],
) -> tuple[bool, ImageProof]:
    """Check that RTMR0 is that of an image.

    Args:
        image: Digests of the image.
        vm_config: `fields` of the `VmConfig` in the evidence.
        memory_size: Memory of the VM in bytes.
        quoted: RTMR0 of the quote, 48 bytes.
        events: Event log, from which digests of the host's tables are taken.

    Returns:
        Whether the second EV_SEPARATOR is in RTMR0, and the facts that RTMR0 confirms.

    Raises:
        VerificationError: If RTMR0 differs.
        UnsupportedError: If a digest that RTMR0 needs is not known.
    """
    tables, logged = recompute_tables(vm_config), _logged(events, 0)
    boots = [
        _FirmwareBoot(second, image.firmware_events(memory_size, second_separator=second))
        for second in image.second_separators
    ]
    for boot in boots:
        for digests in tables.digests:
            filled = _fill(boot.events, logged, digests)
            if filled is not None and replay(filled, 0) == quoted:
                proof = ImageProof(acpi_tables=True, from_log=_from_log(boot.events))
                return boot.second_separator, proof
    # A shortened log has no digests of tables; tables that must be there are then those expected.
    expected = tables.digests[0] if tables.conclusive else None
    found = _match_log(boots, quoted, logged, _acpi_digests(events) or expected)
    if tables.conclusive:
        raise _other_tables()
    proof = ImageProof(acpi_tables=False, from_log=(*_from_log(found.events), *ACPI_LABELS))
    return found.second_separator, proof


def _match_log(
    boots: Sequence[_FirmwareBoot],
    quoted: bytes,
    logged: Sequence[bytes],
    acpi: AcpiDigests | None,
) -> _FirmwareBoot:
    """Return the one of `boots` whose events replay to `quoted`, the RTMR0 of the quote.

    The events of ACPI tables have the digests `acpi`; others of tables of the host have those of
    `logged`, the digests of RTMR0 in the log, at the same position.

    Raises:
        VerificationError: If no boot replays to `quoted`.
        UnsupportedError: If `acpi` is None, or the log has another number of events, for all boots.
    """
    refused: list[tuple[bytes, list[ExpectedEvent]]] = []
    for boot in boots:
        filled = _fill(boot.events, logged, acpi)
        computed = None if filled is None else replay(filled, 0)
        if computed == quoted:
            return boot
        if filled is not None and computed is not None:
            refused.append((computed, filled))
    if not refused:
        raise UnsupportedError(
            "event log: has no digests of the host's ACPI or SMBIOS tables, and those of this VM's "
            "shape are not known; request evidence with a complete log",
            reason="os_image",
        )
    computed, filled = refused[0]
    raise _mismatch("RTMR0", computed, quoted, _first_difference(filled, logged))


def _fill(
    expected: Sequence[ExpectedEvent], logged: Sequence[bytes], acpi: AcpiDigests | None
) -> list[ExpectedEvent] | None:
    """Return the expected events with the digests of the host's tables filled in.

    Args:
        expected: Events of RTMR0; those that measure the host's tables have no digest.
        logged: Digests of RTMR0 in the log, 48 bytes each, from which tables other than ACPI's are
            taken, at the same position.
        acpi: Digests of the ACPI tables; None if they are not known.

    Returns:
        The events; None if a digest is not known.
    """
    known: dict[str, bytes] = dict(zip(ACPI_LABELS, acpi or (), strict=acpi is not None))
    filled = []
    for position, event in enumerate(expected):
        digest = event.digest or known.get(event.name)
        if digest is None:
            # Shortened for a certificate, or of another boot.
            if event.name in ACPI_LABELS or len(logged) != len(expected):
                return None
            digest = logged[position]
        filled.append(event._replace(digest=digest))
    return filled


def _from_log(expected: Sequence[ExpectedEvent]) -> tuple[str, ...]:
    return tuple(
        event.name for event in expected if not event.digest and event.name not in ACPI_LABELS
    )


def _logged(events: Sequence[WireEvent], register: int) -> list[bytes]:
    return [
        event.digest for event in events if event.imr == register and event.event_type != NO_ACTION
    ]


def _acpi_digests(events: Sequence[WireEvent]) -> AcpiDigests | None:
    """Return the digests of the ACPI tables in a log, which older agents log without names.

    None if the log does not have exactly these events, each with a digest of 48 bytes.
    """
    found = [event for event in events if is_acpi_data(event)]
    names = tuple(event.event for event in found)
    if len(found) != len(ACPI_LABELS) or (any(names) and names != ACPI_LABELS):
        return None
    loader, rsdp, tables = [event.digest for event in found]
    return (loader, rsdp, tables) if len(loader) == len(rsdp) == len(tables) == 48 else None


def _qemu_release(vm_config: Mapping[str, Any]) -> QemuRelease:
    """Return the release of QEMU, which the kernel's digest depends on.

    Args:
        vm_config: `fields` of a `VmConfig`, with `qemu_version`.
    """
    stated = {"cpu_count": 1, "memory_size": 1 << 30, "qemu_version": vm_config.get("qemu_version")}
    return MachineShape.from_vm_config(stated).qemu_release


def _first_difference(expected: Sequence[ExpectedEvent], logged: Sequence[bytes]) -> str:
    """Return a text on the first difference between the events of an image and those in a log.

    Args:
        expected: Events of a boot of the image.
        logged: Digests in the log, 48 bytes each; empty if the log is shortened.
    """
    if not logged:
        return "the event log is shortened, so what differs is not known"
    for event, digest in zip(expected, logged, strict=False):
        if event.digest != digest:
            what = _FILES.get(event.name)
            return f"event {event.name} differs" + (f", which measures {what}" if what else "")
    return f"the log has {len(logged)} events, and a boot of the image {len(expected)}"


def _mismatch(register: str, expected: bytes, actual: bytes, cause: str) -> VerificationError:
    values = f"expected={expected.hex()}, actual={actual.hex()}"
    message = f"MRs do not match: {register} mismatch: {values}; {cause}"
    return VerificationError(message, reason="os_image")


def _other_tables() -> VerificationError:
    return VerificationError(
        "ACPI tables: not those that QEMU makes for the shape in vm_config: the host replaced "
        "them, or states another shape; do not trust it, or have it correct vm_config",
        reason="os_image",
    )


class RecomputedTables(NamedTuple):
    """Digests of the ACPI tables of a VM's shape.

    Attributes:
        digests: Digests with and without a root disk, which the shape in evidence does not state.
            Empty if no source has tables of the shape.
        conclusive: Whether a TD of the shape has one of these and no other tables: they are for the
            release line of its QEMU, and guests of that line were observed to measure them.
    """

    digests: tuple[AcpiDigests, ...]
    conclusive: bool


_UNKNOWN: Final = RecomputedTables((), conclusive=False)


def recompute_tables(vm_config: Mapping[str, Any]) -> RecomputedTables:
    """Return digests of the ACPI tables of the shape in a VM configuration; none if not known.

    Args:
        vm_config: `fields` of a `VmConfig`; the host states them, and they are not verified.
    """
    try:
        shapes = [MachineShape.from_vm_config(vm_config, root_disk=disk) for disk in (True, False)]
        found = [_digests_of(shape) for shape in shapes]
    except (FormatError, UsageError):  # a shape whose tables are not known
        return _UNKNOWN
    with_disk, without_disk = found
    digests = [each[0] for each in found if each is not None]
    conclusive = with_disk is not None and with_disk[1] and without_disk is not None
    return RecomputedTables(tuple(digests), conclusive=conclusive)


@lru_cache(_MOST_SHAPES)
def _digests_of(shape: MachineShape) -> tuple[AcpiDigests, bool] | None:
    found = find_tables(shape)
    if found is None:
        return None
    return found.files.digests(), found.exact and found.basis != "source"
