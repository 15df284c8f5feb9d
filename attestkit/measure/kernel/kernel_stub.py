"""Events of RTMR2 by the EFI stub of Linux, and by a shim before it."""

from attestkit.event_log.event_types import EVENT_TAG, IPL
from attestkit.measure.expected_event import Basis, ExpectedEvent
from attestkit.measure.kernel.boot_events import event_of


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
