"""Events of every kind of boot: of the firmware, of the EFI stub of Linux, and of a shim."""

from typing import Final

from attestkit._crypto.hashes import sha384
from attestkit.event_log.event_types import BOOT_APPLICATION, EFI_ACTION, EVENT_TAG, IPL, SEPARATOR
from attestkit.measure.expected_event import Basis, ExpectedEvent


def event_of(register: int, name: str, event_type: int, data: bytes, basis: Basis) -> ExpectedEvent:
    """Return the event whose digest is that of `data`."""
    return ExpectedEvent(register, name, event_type, sha384(data), basis)


def image_event(name: str, digest: bytes, basis: Basis) -> ExpectedEvent:
    """Return the event of a loaded PE image with this Authenticode hash."""
    return ExpectedEvent(1, name, BOOT_APPLICATION, digest, basis)


ACTIONS: Final = {
    "calling": b"Calling EFI Application from Boot Option",
    "exit-invocation": b"Exit Boot Services Invocation",
    "exit-success": b"Exit Boot Services Returned with Success",
}
"""Event data of the firmware's actions, by event name."""

CALLING, *_EXITS = [
    event_of(1, name, EFI_ACTION, text, "hardware") for name, text in ACTIONS.items()
]
BOOT_SEPARATOR: Final = event_of(1, "separator", SEPARATOR, bytes(4), "hardware")
EXITS: Final = tuple(_EXITS)


def before_images(*, separator: bool) -> list[ExpectedEvent]:
    """Return the events when the first boot option starts.

    Args:
        separator: Whether the firmware separates here (edk2 from 202411), not in RTMR0.
    """
    return [CALLING, BOOT_SEPARATOR] if separator else [CALLING]


def kernel_stub_events(
    options: bytes, initrd: bytes | None, basis: Basis = "independent"
) -> list[ExpectedEvent]:
    """Return the events of RTMR2 that the EFI stub of Linux adds.

    Args:
        options: The load options; none are not measured.
        initrd: The initrd that the stub loads; optional.
        basis: What confirms the load options.
    """
    events = []
    if options:
        events.append(event_of(2, "load-options", EVENT_TAG, options, basis))
    if initrd:
        events.append(event_of(2, "initrd", EVENT_TAG, initrd, "independent"))
    return events


def shim_variable_events() -> list[ExpectedEvent]:
    """Return the events of a shim's variables in RTMR2, whose content no image determines."""
    names = ("MokList", "MokListX", "MokListTrusted")
    return [ExpectedEvent(2, name, IPL, None, "source") for name in names]
