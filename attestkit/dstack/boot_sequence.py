"""Boot events: the runtime events by which a guest measures its app while it boots.

They extend RTMR3, or PCR 14 of a NitroTPM.

Names and payloads are those of the dstack guest agent. Verifiers read the identity of the app only
from the events up to `system-ready`, so later events of the app cannot change it.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from attestkit.dstack.app_compose import KEY_PROVIDERS, AppCompose
from attestkit.errors import JournalError
from attestkit.event_log import Event
from attestkit.event_log.journal_protocols import ZERO, RuntimeLog, mismatch_error, replay_from
from attestkit.event_log.runtime_events import GPU_ATTESTATION, runtime_event
from attestkit.keys import AppKeys

_KNOWN_BY_ID = ("local", "kms")  # key providers whose id is measured
_DEFAULT_STORAGE = "zfs"
_LAST = "system-ready"


class Launch(NamedTuple):
    """The values of a guest that its boot events measure into RTMR3 (TDX) or PCR 14 (NitroTPM)."""

    app_compose: AppCompose
    app_id: bytes  # 20 bytes
    instance_id: bytes  # 20 bytes, or empty
    os_image_hash: bytes  # 32 bytes, or empty if the VM configuration does not have it
    app_keys: AppKeys | None  # only their key provider is measured
    gpu_attestation: bytes | None = None  # payload of the event about the GPUs, if there are any


def boot_events(launch: Launch) -> tuple[Event, ...]:
    """Return the boot events in order, with digests of the app's `event_log_version`."""
    return (*events_before_keys(launch), *events_after_keys(launch))


def events_before_keys(launch: Launch) -> tuple[Event, ...]:
    """Return the events up to `boot-mr-done`, with which a guest requests keys from a KMS.

    The app's keys and the hash of the OS image have no influence on them.
    """
    compose = launch.app_compose
    sequence = [
        ("system-preparing", b""),
        ("app-id", launch.app_id),
        ("compose-hash", compose.compose_hash),
        *(("init-script-hash", one) for one in compose.init_script_hashes),
        ("gpu-policy-hash", compose.gpu_policy_hash),
        *((GPU_ATTESTATION, one) for one in (launch.gpu_attestation,) if one is not None),
        ("instance-id", launch.instance_id),
        ("boot-mr-done", b""),
    ]
    return _make_events(sequence, compose)


def events_after_keys(launch: Launch) -> tuple[Event, ...]:
    """Return the events after `boot-mr-done`, whose last one is `system-ready`.

    They are `os-image-hash` (only with a KMS), `key-provider`, `storage-fs`, `system-ready`.
    """
    compose, keys = launch.app_compose, launch.app_keys
    sequence = [
        ("key-provider", _key_provider(keys)),
        ("storage-fs", (compose.storage_fs or _DEFAULT_STORAGE).encode()),
        (_LAST, b""),
    ]
    if keys is not None and keys.key_provider == "kms":
        sequence.insert(0, ("os-image-hash", launch.os_image_hash))
    return _make_events(sequence, compose)


def _make_events(sequence: list[tuple[str, bytes]], compose: AppCompose) -> tuple[Event, ...]:
    version = compose.event_log_version
    return tuple([runtime_event(name, payload, version) for name, payload in sequence])


def _key_provider(keys: AppKeys | None) -> bytes:
    provider = "none" if keys is None else keys.key_provider
    name = KEY_PROVIDERS[provider][1]
    provider_id = keys.key_provider_id if keys and provider in _KNOWN_BY_ID else ""
    return json.dumps({"name": name, "id": provider_id}, separators=(",", ":")).encode()


def measure_app(
    log: RuntimeLog,
    read_register: Callable[[], bytes],
    events: tuple[Event, ...],
    name: str = "RTMR3",
) -> None:
    """Emit the boot events, under one lock, if no event has been emitted since the reboot.

    If the log already begins with exactly these events, return without emitting them again.

    Args:
        log: The runtime log.
        read_register: Returns the register, 48 bytes.
        name: Name of the register, for errors.
        events: The events from `boot_events`.

    Raises:
        JournalError: If other events, or only some of these, were emitted before, or the register
            was extended (reason `too_late`).
        BackendError: If the platform rejects an extend; earlier events remain.
        UsageError: If the events have another digest version than the log.
    """
    with log.locked():
        done, register = log.events(), read_register()
        if done[: len(events)] == events and replay_from(ZERO, done) == register:
            return
        if done or register != ZERO:
            raise JournalError(_too_late(done, register, events, name), reason="too_late")
        for event in events:
            log.emit(event)


def continue_boot(
    log: RuntimeLog,
    read_register: Callable[[], bytes],
    events: tuple[Event, ...],
    name: str = "RTMR3",
) -> None:
    """Emit those boot events that the log does not have yet, under one lock.

    A log that begins with all of them is left as it is. So a boot in two phases, in which keys are
    requested in between, can be continued after a crash at any point.

    Args:
        log: The runtime log.
        read_register: Returns the register, 48 bytes.
        events: The first events of this boot.
        name: Name of the register, for errors.

    Raises:
        JournalError: If the log does not match the register (reason `mismatch`), or has events
            other than these (`too_late`).
        BackendError: If the platform rejects an extend; earlier events remain.
        UsageError: If the events have another digest version than the log.
    """
    with log.locked():
        done, register = log.events(), read_register()
        if (replay := replay_from(ZERO, done)) != register:
            raise mismatch_error(register, replay, log.path, name)
        if not is_start(done, events):
            raise JournalError(_too_late(done, register, events, name), reason="too_late")
        for event in events[len(done) :]:
            log.emit(event)


def is_start(done: tuple[Event, ...], events: tuple[Event, ...]) -> bool:
    """Return whether the shorter one of `done` and `events` is the beginning of the other."""
    common = min(len(done), len(events))
    return done[:common] == events[:common]


def _too_late(
    done: tuple[Event, ...], register: bytes, events: tuple[Event, ...], name: str
) -> str:
    if replay_from(ZERO, done) != register:
        why = f"{name} does not match the runtime log: {register.hex()}"
    elif len(done) < len(events) and done == events[: len(done)]:
        why = f"an earlier attempt stopped after {len(done)} of {len(events)} events"
    elif any(event.name == _LAST for event in done):
        why = f"a different app was measured during this boot ({_LAST!r} is in the log)"
    else:
        why = f"{len(done)} other events were emitted before"
    return (
        f"boot events: too late to measure the app: {why}; reboot the guest, which resets {name}, "
        "and measure the app before any other event is emitted, or do not measure it"
    )
