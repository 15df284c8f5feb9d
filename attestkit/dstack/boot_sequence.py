"""What a guest measures of its app while it boots, as runtime events in RTMR3.

The names and payloads are those of the dstack guest agent. Verifiers read an app's identity from
these events, and only from those before `system-ready`: what an app emits later cannot alter it.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from attestkit.dstack.app_compose import KEY_PROVIDERS, AppCompose
from attestkit.errors import JournalError
from attestkit.event_log import Event
from attestkit.event_log.journal_protocols import ZERO, RuntimeLog, replay_from
from attestkit.event_log.runtime_events import runtime_event
from attestkit.keys import AppKeys

__all__ = ["Launch", "boot_events", "measure"]

_KNOWN_BY_ID = ("local", "kms")  # of the others the id is not measured
_DEFAULT_STORAGE = "zfs"
_LAST = "system-ready"


class Launch(NamedTuple):
    """What a guest knows about itself when it boots."""

    app_compose: AppCompose
    app_id: bytes  # 20 bytes
    instance_id: bytes  # 20 bytes, or none
    os_image_hash: bytes  # 32 bytes, or none where the machine's configuration does not tell
    app_keys: AppKeys | None  # tell where the keys come from; no secret is measured


def boot_events(launch: Launch) -> tuple[Event, ...]:
    """Return the events of a boot in order, in the digest version that the app asks for."""
    compose, keys = launch.app_compose, launch.app_keys
    sequence = [
        ("system-preparing", b""),
        ("app-id", launch.app_id),
        ("compose-hash", compose.compose_hash),
        *(("init-script-hash", one) for one in compose.init_script_hashes),
        ("gpu-policy-hash", compose.gpu_policy_hash),
        ("instance-id", launch.instance_id),
        ("boot-mr-done", b""),
    ]
    if keys is not None and keys.key_provider == "kms":
        sequence.append(("os-image-hash", launch.os_image_hash))
    sequence += [
        ("key-provider", _key_provider(keys)),
        ("storage-fs", (compose.storage_fs or _DEFAULT_STORAGE).encode()),
        (_LAST, b""),
    ]
    version = compose.event_log_version
    return tuple(runtime_event(name, payload, version) for name, payload in sequence)


def _key_provider(keys: AppKeys | None) -> bytes:
    provider = "none" if keys is None else keys.key_provider
    name = KEY_PROVIDERS[provider][1]
    provider_id = keys.key_provider_id if keys and provider in _KNOWN_BY_ID else ""
    return json.dumps({"name": name, "id": provider_id}, separators=(",", ":")).encode()


def measure(log: RuntimeLog, read_register: Callable[[], bytes], events: tuple[Event, ...]) -> None:
    """Emit a boot's events, all in one turn, if nothing has been emitted since the reboot.

    A log that begins with exactly these events is of a boot that has measured them already, and
    nothing is done.

    Args:
        log: The runtime log.
        read_register: Returns RTMR3, 48 bytes.
        events: What `boot_events` returned.

    Raises:
        JournalError: Something else was emitted or extended before.
    """
    with log.locked():
        done, register = log.events(), read_register()
        if done[: len(events)] == events and replay_from(ZERO, done) == register:
            return
        if done or register != ZERO:
            raise JournalError(_too_late(done, register, events))
        for event in events:
            log.emit(event)


def _too_late(done: tuple[Event, ...], register: bytes, events: tuple[Event, ...]) -> str:
    if replay_from(ZERO, done) != register:
        why = f"RTMR3 is {register.hex()}, which the runtime log does not explain"
    elif len(done) < len(events) and done == events[: len(done)]:
        why = f"an earlier attempt ended after {len(done)} of {len(events)} events"
    elif any(event.name == _LAST for event in done):
        why = f"this boot measured another app, or this one otherwise ({_LAST!r} is in the log)"
    else:
        why = f"{len(done)} events were emitted before"
    return (
        f"the app cannot be measured any more: {why}; reboot the guest, so that RTMR3 is zero, and "
        "measure the app before anything else is emitted; or do without measuring it"
    )
