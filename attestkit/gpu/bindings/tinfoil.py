"""Answers of Tinfoil, in the form of June 2026 and in that of version 3 (nvidia-gpu.md, 6.1).

The report data commit to the GPU evidence as sent, so it is taken from the answer's bytes.
"""

import json
from typing import Any, Final

import msgspec

from attestkit._argument_checks import utf8
from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit.errors import FormatError
from attestkit.gpu.bindings.answer_fields import (
    HASH_SIZE,
    check_nonce_size,
    hex_member,
    read_answer,
    text_member,
)
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.gpu.evidence import GpuEvidence, read_devices

_WHAT: Final = "Tinfoil answer"
_ALGORITHM: Final = "https://tinfoil.sh/report-data/v1"
_GPU_FORMAT: Final = "https://tinfoil.sh/format/nvidia-gpu-evidence/v1"
_VENDOR: Final = "nvidia"
_KINDS: Final = ("gpu", "nvswitch")  # of devices whose evidence must not be left out
_ZEROS: Final = bytes(32)
_KEYS: Final = ("tls_key_fp", "hpke_key")


class _RawParts(msgspec.Struct):
    """Members whose bytes as sent are hashed."""

    gpu: msgspec.Raw = msgspec.Raw(b"")
    nvswitch: msgspec.Raw = msgspec.Raw(b"")


def read_tinfoil(answer: bytes, *, nonce: bytes) -> GpuBinding:
    """Read the answer to `/.well-known/tinfoil-attestation`.

    Compare `committed` with the TLS connection and the key of HPKE.

    Args:
        answer: JSON as received.
        nonce: Of the request, 32 bytes.

    Raises:
        FormatError: If the answer is malformed, has no evidence of GPUs, or a hash in it is not
            that of the part.
        UsageError: If the nonce is not 32 bytes.
    """
    check_nonce_size(nonce)
    members = read_answer(answer, _WHAT)
    if "challenge" in members:
        return _read_sections(members, nonce)
    return _read_june(answer, members, nonce)


def tinfoil_report_data(*parts: bytes) -> bytes:
    """Return the report data of June 2026: the hash of keys, nonce and hashes of devices."""
    return sha256(b"".join(parts)) + _ZEROS


def _read_june(answer: bytes, members: dict[str, Any], nonce: bytes) -> GpuBinding:
    stated = _object(members, "report_data")
    keys = {name: hex_member(stated, name, _WHAT, HASH_SIZE) for name in _KEYS}
    try:
        raw = msgspec.json.decode(answer, type=_RawParts)
    except msgspec.MsgspecError as error:
        raise FormatError(f"{_WHAT}: malformed", reason="syntax") from error
    parts = {"gpu": bytes(raw.gpu), "nvswitch": bytes(raw.nvswitch)}
    hashes = []
    for name, part in parts.items():
        if (found := _hash_of(part, stated, f"{name}_evidence_hash")) is not None:
            hashes.append(found)
    if not parts["gpu"]:
        raise FormatError(f"{_WHAT}: gpu: missing", reason="missing")
    devices = [
        device for part in parts.values() if part for device in read_devices(json.loads(part))
    ]
    return GpuBinding(
        system="tinfoil",
        kind="report_data",
        # With switches a list of all devices, so that their evidence is in its hash, too.
        evidence=GpuEvidence(tuple(devices), b"" if parts["nvswitch"] else parts["gpu"]),
        nonce=nonce,
        gpu_nonce=nonce,
        report_data=tinfoil_report_data(*keys.values(), nonce, *hashes),
        committed=keys,
    )


def _hash_of(part: bytes, stated: dict[str, Any], name: str) -> bytes | None:
    """Return the hash of a part as sent; None without the part."""
    if not part:
        if stated.get(name) is not None:
            message = f"{_WHAT}: {name}: the part is missing"
            raise FormatError(message, reason="inconsistent")
        return None
    found = sha256(part)
    if hex_member(stated, name, _WHAT, HASH_SIZE) != found:
        message = f"{_WHAT}: {name}: not the hash of the part"
        raise FormatError(message, reason="inconsistent")
    return found


def _read_sections(members: dict[str, Any], nonce: bytes) -> GpuBinding:
    challenge = _object(members, "challenge")
    if challenge.get("report_data_algorithm") != _ALGORITHM:
        message = f"{_WHAT}: report_data_algorithm: must be {_ALGORITHM}"
        raise FormatError(message, reason="unsupported")
    material = strict_json.from_base64(members.get("crypto_material"), f"{_WHAT}: crypto_material")
    section = strict_json.from_base64(members.get("device_evidence"), f"{_WHAT}: device_evidence")
    entries = [item.get("evidence") for item in _items(section) if _is_of_gpu(item)]
    hashed = _ALGORITHM.encode() + nonce + sha256(material) + sha256(section)
    return GpuBinding(
        system="tinfoil",
        kind="report_data",
        evidence=GpuEvidence(read_devices(entries), section),
        nonce=nonce,
        gpu_nonce=nonce,
        report_data=sha256(hashed) + _ZEROS,
        committed=_keys(material),
    )


def _is_of_gpu(item: dict[str, Any]) -> bool:
    """Return whether an item is evidence of NVIDIA's devices.

    Raises:
        FormatError: If it is, or is of a GPU or switch, in another format than the known one.
    """
    vendor, kind = item.get("vendor"), item.get("kind")
    if vendor != _VENDOR and kind not in _KINDS:
        return False
    if (vendor, item.get("format")) != (_VENDOR, _GPU_FORMAT):
        message = f"{_WHAT}: device_evidence: an item has another format than {_GPU_FORMAT}"
        raise FormatError(message, reason="unsupported")
    return True


def _keys(material: bytes) -> dict[str, bytes]:
    """Return the data of the items by their identifiers."""
    found: dict[str, bytes] = {}
    for item in _items(material):
        name = text_member(item, "id", f"{_WHAT}: crypto_material")
        if name in found:
            message = f"{_WHAT}: crypto_material: two items have the same id"
            raise FormatError(message, reason="duplicate")
        data = text_member(item, "data", f"{_WHAT}: crypto_material")
        found[name] = utf8(data, f"{_WHAT}: crypto_material", FormatError)
    return found


def _items(section: bytes) -> list[dict[str, Any]]:
    found = strict_json.read_object(section, _WHAT).get("items")
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise FormatError(f"{_WHAT}: items: must be a list of objects", reason="wrong_type")
    return found


def _object(members: dict[str, Any], name: str) -> dict[str, Any]:
    found = members.get(name)
    if not isinstance(found, dict):
        raise FormatError(f"{_WHAT}: {name}: must be an object", reason="wrong_type")
    return found
