"""Independent program that extends RTMR3 and logs events like the dstack guest agent.

It implements the log format and the kernel's files without attestkit, whose log is compared with
it.
"""

import fcntl
import hashlib
import json
import os
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

EVENT_TYPE = 0x08000001
LOG = "runtime_events.log"
VERSION = "runtime_event_version"
LOCK = "runtime_event.lock"

DEVICE = "dev/tdx_guest"
REGISTER = "sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"
GET_REPORT0 = 0xC4405401
EXTEND_RTMR = (0x80315403, 0x40315403)
RTMR3_AT = 64 + 720 + 3 * 48  # offset after the report data in a TD report


def digest_of(name: str, payload: bytes, version: int = 1) -> bytes:
    """Return the digest by which an event extends RTMR3; `name` must need no JSON escapes."""
    if version == 2:
        text = f'{{"name":"{name}","payload":"{payload.hex()}","type":{EVENT_TYPE}}}'
        return hashlib.sha384(text.encode()).digest()
    head = struct.pack("<I", EVENT_TYPE)
    return hashlib.sha384(b":".join((head, name.encode(), payload))).digest()


def replay(digests: Iterable[bytes]) -> bytes:
    """Return RTMR3 after these digests."""
    value = bytes(48)
    for digest in digests:
        value = hashlib.sha384(value + digest).digest()
    return value


def line_of(name: str, payload: bytes, version: int = 1) -> bytes:
    """Return a line of the log."""
    event: dict[str, object] = {"event": name, "payload": b64encode(payload).decode()}
    if version != 1:
        event["version"] = version
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def read_events(log: Path) -> list[tuple[str, bytes]]:
    """Return name and digest of each event in the log; each line must be complete."""
    try:
        data = (log / LOG).read_bytes()
    except FileNotFoundError:
        return []
    assert data.endswith(b"\n")
    events = []
    for line in data.splitlines():
        event = json.loads(line)
        payload = b64decode(event["payload"], validate=True)
        digest = digest_of(event["event"], payload, event.get("version", 1))
        events.append((event["event"], digest))
    return events


def read_register(root: Path) -> bytes:
    """Return RTMR3 of a fresh TD report."""
    request = bytearray(64 + 1024)
    fd = os.open(root / DEVICE, os.O_RDWR)
    try:
        fcntl.ioctl(fd, GET_REPORT0, request)
    finally:
        os.close(fd)
    return bytes(request[RTMR3_AT : RTMR3_AT + 48])


def extend(root: Path, digest: bytes) -> None:
    """Extend RTMR3 by its file, or on older kernels by the driver's ioctl."""
    if (root / REGISTER).exists():
        fd = os.open(root / REGISTER, os.O_WRONLY)
        try:
            assert os.write(fd, digest) == 48
        finally:
            os.close(fd)
        return
    fd = os.open(root / DEVICE, os.O_RDWR)
    try:
        for number in EXTEND_RTMR:
            try:
                fcntl.ioctl(fd, number, digest + b"\x03")
            except OSError as error:
                if error.errno != 25 or number == EXTEND_RTMR[-1]:  # ENOTTY: no effect
                    raise
            else:
                return
    finally:
        os.close(fd)


def emit(root: Path, log: Path, name: str, payload: bytes, version: int = 1) -> None:
    """Extend and log an event under the lock, in the agent's order."""
    log.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (log / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        extend(root, digest_of(name, payload, version))
        with (log / LOG).open("ab") as file:
            file.write(line_of(name, payload, version))
