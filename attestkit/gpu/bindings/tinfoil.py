"""Answers of Tinfoil, in the form of June 2026 and in that of version 3 (nvidia-gpu.md, 6.1).

The report data commit to the GPU evidence as sent, so it is taken from the answer's bytes.
"""

import json
from typing import Any, Final, NamedTuple

from attestkit._argument_checks import utf8
from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._formats.strict_json import member_spans
from attestkit.errors import FormatError
from attestkit.gpu.bindings.answer_formats import (
    HASH_SIZE,
    check_nonce_size,
    hex_member,
    read_answer,
)
from attestkit.gpu.evidence import GpuBinding, GpuEvidence, read_devices

REPORT_DATA_ALGORITHM: Final = "https://tinfoil.sh/report-data/v1"
"""Name of the report data of version 3, which is hashed, too; an earlier draft lacked it."""

_WHAT: Final = "Tinfoil answer"
_GPU_FORMAT: Final = "https://tinfoil.sh/format/nvidia-gpu-evidence/v1"
_VENDOR: Final = "nvidia"
_KINDS: Final = ("gpu", "nvswitch")  # of devices whose evidence must not be left out
_ZEROS: Final = bytes(32)
_KEYS: Final = ("tls_key_fp", "hpke_key")


class DeviceParts(NamedTuple):
    """Members of an answer of June whose bytes as sent are hashed; empty if missing."""

    gpu: bytes
    nvswitch: bytes
    hashes: tuple[bytes, ...]  # of the parts that are there


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


def tinfoil_section_data(nonce: bytes, crypto_material: bytes, device_evidence: bytes) -> bytes:
    """Return the report data of August 2026: the hash of a label, nonce and hashes of sections.

    Args:
        nonce: Of the client, 32 bytes.
        crypto_material: The decoded section with the keys.
        device_evidence: The decoded section with the devices.
    """
    label = REPORT_DATA_ALGORITHM.encode()
    hashes = sha256(crypto_material) + sha256(device_evidence)
    return sha256(label + nonce + hashes) + _ZEROS


def read_device_parts(answer: bytes, stated: dict[str, Any]) -> DeviceParts:
    """Return the evidence of devices of an answer of June as sent, and its hashes.

    Args:
        answer: JSON as received.
        stated: Its member `report_data`.

    Raises:
        FormatError: If the answer is malformed, or a hash is not that of the part.
    """
    try:
        text = answer.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{_WHAT}: not UTF-8", reason="encoding") from error
    spans = member_spans(text)
    parts, hashes = [], []
    for name in _KINDS:
        start, end = spans.get(name, (0, 0))
        parts.append(text[start:end].encode())
        if (found := _hash_of(parts[-1], stated, f"{name}_evidence_hash")) is not None:
            hashes.append(found)
    return DeviceParts(parts[0], parts[1], tuple(hashes))


def has_gpu_items(device_evidence: bytes) -> bool:
    """Return whether a decoded section of August has evidence of GPUs or switches.

    Raises:
        FormatError: If the section is malformed, or has such evidence in an unknown format.
    """
    return sum(map(_is_of_gpu, _items(device_evidence))) > 0  # each one is checked


def _read_june(answer: bytes, members: dict[str, Any], nonce: bytes) -> GpuBinding:
    stated = _object(members, "report_data")
    keys = {name: hex_member(stated, name, _WHAT, HASH_SIZE) for name in _KEYS}
    gpu, nvswitch, hashes = read_device_parts(answer, stated)
    if not gpu:
        raise FormatError(f"{_WHAT}: gpu: missing", reason="missing")
    devices = [
        device for part in (gpu, nvswitch) if part for device in read_devices(json.loads(part))
    ]
    return GpuBinding(
        system="tinfoil",
        kind="report_data",
        # With switches a list of all devices, so that their evidence is in its hash, too.
        evidence=GpuEvidence(tuple(devices), b"" if nvswitch else gpu),
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
    if challenge.get("report_data_algorithm") != REPORT_DATA_ALGORITHM:
        message = f"{_WHAT}: report_data_algorithm: must be {REPORT_DATA_ALGORITHM}"
        raise FormatError(message, reason="unsupported")
    material = strict_json.from_base64(members.get("crypto_material"), f"{_WHAT}: crypto_material")
    section = strict_json.from_base64(members.get("device_evidence"), f"{_WHAT}: device_evidence")
    entries = [item.get("evidence") for item in _items(section) if _is_of_gpu(item)]
    return GpuBinding(
        system="tinfoil",
        kind="report_data",
        evidence=GpuEvidence(read_devices(entries), section),
        nonce=nonce,
        gpu_nonce=nonce,
        report_data=tinfoil_section_data(nonce, material, section),
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
        name = strict_json.string(item, "id", what=f"{_WHAT}: crypto_material")
        if name in found:
            message = f"{_WHAT}: crypto_material: two items have the same id"
            raise FormatError(message, reason="duplicate")
        data = strict_json.string(item, "data", what=f"{_WHAT}: crypto_material")
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
