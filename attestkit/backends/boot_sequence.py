"""What a guest measures of its app while it boots, as runtime events in RTMR3.

The names and payloads are those of the dstack guest agent. Verifiers read an app's identity from
these events, and only from those before `system-ready`: what an app emits later cannot alter it.
"""

import json
from typing import NamedTuple

from attestkit.app_compose import AppCompose
from attestkit.attestation.mr_config import KEY_PROVIDERS
from attestkit.event_log import Event
from attestkit.event_log.runtime import runtime_event
from attestkit.keys import AppKeys

__all__ = ["Launch", "boot_events"]

_KNOWN_BY_ID = ("local", "kms")  # of the others the id is not measured
_DEFAULT_STORAGE = "zfs"


class Launch(NamedTuple):
    """What a guest knows about itself when it boots."""

    app_compose: AppCompose
    app_id: bytes  # 20 bytes
    instance_id: bytes  # 20 bytes, or none
    os_image_hash: bytes  # 32 bytes, or none where the machine's configuration does not tell
    app_keys: AppKeys  # tell where the keys come from; no secret is measured


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
    if keys.key_provider == "kms":
        sequence.append(("os-image-hash", launch.os_image_hash))
    sequence += [
        ("key-provider", _key_provider(keys)),
        ("storage-fs", (compose.storage_fs or _DEFAULT_STORAGE).encode()),
        ("system-ready", b""),
    ]
    version = compose.event_log_version
    return tuple(runtime_event(name, payload, version) for name, payload in sequence)


def _key_provider(keys: AppKeys) -> bytes:
    name = KEY_PROVIDERS[keys.key_provider][1]
    provider_id = keys.key_provider_id if keys.key_provider in _KNOWN_BY_ID else ""
    return json.dumps({"name": name, "id": provider_id}, separators=(",", ":")).encode()
