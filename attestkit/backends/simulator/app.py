"""The app of a simulated TD that was handed none, and what a boot gives any app."""

import json
from typing import Final

from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit.app_compose import AppCompose

__all__ = ["OWN_APP", "instance_id"]

_SALT: Final = b"attestkit/simulator/v1"

# Logs and system information are public, so that every page of a server has something to show.
OWN_APP: Final = json.dumps(
    {
        "manifest_version": 2,
        "name": "attestkit-simulator",
        "runner": "docker-compose",
        "docker_compose_file": "services: {}\n",
        "public_logs": True,
        "public_sysinfo": True,
        "public_tcbinfo": True,
        "key_provider": "none",
        "no_instance_id": False,
        "secure_time": False,
        "event_log_version": 1,
    },
    separators=(",", ":"),
).encode()


def instance_id(seed: bytes, app_id: bytes, compose: AppCompose) -> bytes:
    """Return the 20 bytes that tell instances of one app apart; none if the app wants none.

    Rule of the dstack guest: the head of SHA-256 over a secret of the disk, here of the seed, and
    the app id.
    """
    if compose.no_instance_id:
        return b""
    return sha256(hkdf_sha256(seed, b"instance-id", 20, _SALT) + app_id)[:20]
