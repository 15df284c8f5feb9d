"""Checks of the boot events and fields that identify an app.

The identity is read from the first event of a name before `system-ready` (attestation-format.md,
section 8.1), and a policy or a program may look for any event of that name. A log in which two
events name an app is therefore ambiguous, and rejected.

A KMS reads it from the events before `boot-mr-done`, because a guest requests its keys before
`system-ready` (kms.md, section 1.5).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from attestkit.errors import VerificationError
from attestkit.event_log.event import Event

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo

_BOOT_END: Final = "system-ready"
_KEY_TIME: Final = "boot-mr-done"
_ONCE: Final = frozenset({"app-id", "compose-hash", "instance-id", "key-provider"})
_ONE_VALUE: Final = "os-image-hash"  # may be repeated with the same value
_SIZES: Final = {"app_id": 20, "compose_hash": 32, "instance_id": 20}  # bytes, where not empty


def check_boot_events(events: Sequence[Event]) -> None:
    """Check that each event before `system-ready` that identifies an app occurs once.

    Raises:
        VerificationError: If `app-id`, `compose-hash`, `instance-id` or `key-provider` occurs
            twice, or `os-image-hash` with two values.
    """
    _check_once(events, _BOOT_END)


def check_key_time_events(events: Sequence[Event]) -> None:
    """Check the events that identify an app which requests keys: those before `boot-mr-done`.

    Raises:
        VerificationError: If `boot-mr-done` is missing or follows `system-ready`, or an event
            before it occurs twice, as in `check_boot_events`.
    """
    names = [event.name for event in events]
    if _KEY_TIME not in names:
        message = f"the evidence has no {_KEY_TIME}"
        raise VerificationError(message, reason="identity")
    if _BOOT_END in names[: names.index(_KEY_TIME)]:
        message = f"event {_KEY_TIME!r}: follows {_BOOT_END}, so it is not of the boot"
        raise VerificationError(message, reason="identity")
    _check_once(events, _KEY_TIME)


def _check_once(events: Sequence[Event], boundary: str) -> None:
    """Check the events before the first event named `boundary`; without it there are none."""
    names = [event.name for event in events]
    end = names.index(boundary) if boundary in names else 0
    if len(set(names[:end])) == end:
        return  # no event of any name occurs twice
    found: dict[str, bytes] = {}
    for name, event in zip(names[:end], events, strict=False):
        if name not in _ONCE and name != _ONE_VALUE:
            continue
        if (first := found.get(name)) is None:
            found[name] = event.payload
        elif name in _ONCE or first != event.payload:
            raise VerificationError(
                f"event {name!r}: occurs twice before {boundary}, with {first.hex()[:128]} and "
                f"{event.payload.hex()[:128]}, so the app is ambiguous; boot with an agent that "
                "measures it once",
                reason="identity",
            )


def check_sizes(info: "AppInfo") -> None:
    """Check the sizes of the identifiers of an app.

    Raises:
        VerificationError: If one that is not empty has another size.
    """
    for name, size in _SIZES.items():
        value: bytes = getattr(info, name)
        if value and len(value) != size:
            message = f"{name}: {len(value)} bytes, must be {size}"
            raise VerificationError(message, reason="identity")
