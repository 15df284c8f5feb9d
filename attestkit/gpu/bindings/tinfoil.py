"""Answers of Tinfoil, in the formats of June and August 2026.

June: members `report_data`, `gpu` and `nvswitch`. August (version 3): a `challenge`, and sections
in base64. The report data contain hashes of parts of the answer, so these are taken from its bytes
as received.
"""

import json
from typing import Any, Final, NamedTuple

from attestkit._argument_checks import require_bytes, utf8
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
"""Name of the report data of version 3 (August 2026), and first part of what they hash."""

_WHAT: Final = "Tinfoil answer"
_GPU_FORMAT: Final = "https://tinfoil.sh/format/nvidia-gpu-evidence/v1"
_VENDOR: Final = "nvidia"
_KINDS: Final = ("gpu", "nvswitch")  # of devices whose evidence must not be left out
_ZEROS: Final = bytes(32)
_KEYS: Final = ("tls_key_fp", "hpke_key")


class DeviceParts(NamedTuple):
    """Members `gpu` and `nvswitch` of an answer of June 2026 as received, and SHA-256 of each."""

    gpu: bytes  # value of the member `gpu`; empty if missing
    nvswitch: bytes  # value of the member `nvswitch`; empty if missing
    hashes: tuple[bytes, ...]  # of those that are not empty, in this order


def read_tinfoil(answer: bytes, *, nonce: bytes) -> GpuBinding:
    """Read the answer of a Tinfoil enclave to `/.well-known/tinfoil-attestation`.

    Compare the result's `committed` with the key of the TLS connection, and use the HPKE key in it.

    Args:
        answer: JSON as received.
        nonce: Nonce of the request, 32 bytes.

    Raises:
        FormatError: If the answer is malformed, has no evidence of GPUs, or states a hash that is
            not that of the evidence in it.
        UsageError: If the answer is not `bytes`, or the nonce is not 32 bytes.
    """
    require_bytes(_WHAT, answer)
    check_nonce_size(nonce)
    members = read_answer(answer, _WHAT)
    if "challenge" in members:
        return _read_sections(members, nonce)
    return _read_june(answer, members, nonce)


def tinfoil_report_data(*parts: bytes) -> bytes:
    """Return the report data of June 2026: the SHA-256 of `parts`, zero-padded to 64 bytes.

    The parts are both keys (TLS, HPKE), the nonce, and `DeviceParts.hashes`, 32 bytes each.
    """
    return sha256(b"".join(parts)) + _ZEROS


def tinfoil_section_data(nonce: bytes, crypto_material: bytes, device_evidence: bytes) -> bytes:
    """Return the report data of version 3 (August 2026), zero-padded to 64 bytes.

    They are the SHA-256 of `REPORT_DATA_ALGORITHM`, the nonce, and the SHA-256 of each section.

    Args:
        nonce: Nonce of the client, 32 bytes.
        crypto_material: The section with the keys, decoded from base64.
        device_evidence: The section with the devices, decoded from base64.
    """
    label = REPORT_DATA_ALGORITHM.encode()
    hashes = sha256(crypto_material) + sha256(device_evidence)
    return sha256(label + nonce + hashes) + _ZEROS


def read_device_parts(answer: bytes, stated: dict[str, Any]) -> DeviceParts:
    """Return the evidence of devices in an answer of the format of June 2026, and its hashes.

    Args:
        answer: JSON as received.
        stated: Its member `report_data`, with the hashes.

    Raises:
        FormatError: If the answer is malformed, or a hash in `stated` is not that of the evidence.
    """
    try:
        text = answer.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{_WHAT}: must be UTF-8", reason="encoding") from error
    spans = member_spans(text)
    parts, hashes = [], []
    for name in _KINDS:
        start, end = spans.get(name, (0, 0))
        parts.append(text[start:end].encode())
        if (found := _hash_of(parts[-1], stated, f"{name}_evidence_hash")) is not None:
            hashes.append(found)
    return DeviceParts(parts[0], parts[1], tuple(hashes))


def has_gpu_items(device_evidence: bytes) -> bool:
    """Return whether the section `device_evidence` of August 2026 has GPUs or switches.

    The section is decoded from base64 already.

    Raises:
        FormatError: If the section is malformed, or has such evidence in an unknown format.
    """
    return sum(map(_is_of_gpu, _items(device_evidence))) > 0  # each one is checked


def _read_june(answer: bytes, members: dict[str, Any], nonce: bytes) -> GpuBinding:
    stated = _object(members, "report_data")
    keys = {name: hex_member(stated, name, _WHAT, HASH_SIZE) for name in _KEYS}
    gpu, nvswitch, hashes = read_device_parts(answer, stated)
    if not gpu:
        raise FormatError(f"{_WHAT}: gpu: missing; use an instance with GPUs", reason="missing")
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
    """Return the SHA-256 of `part` as received, which must be the member `name` (hex) of `stated`.

    None if the part is empty.
    """
    if not part:
        if stated.get(name) is not None:
            message = f"{_WHAT}: {name}: stated, but the evidence that it covers is missing"
            raise FormatError(message, reason="inconsistent")
        return None
    found = sha256(part)
    if hex_member(stated, name, _WHAT, HASH_SIZE) != found:
        message = f"{_WHAT}: {name}: must be the SHA-256 of the evidence, {found.hex()}"
        raise FormatError(message, reason="inconsistent")
    return found


def _read_sections(members: dict[str, Any], nonce: bytes) -> GpuBinding:
    challenge = _object(members, "challenge")
    if challenge.get("report_data_algorithm") != REPORT_DATA_ALGORITHM:
        message = (
            f"{_WHAT}: report_data_algorithm: must be {REPORT_DATA_ALGORITHM}; update attestkit"
        )
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
        FormatError: If it is of NVIDIA, or of a GPU or switch, but in an unknown format.
    """
    vendor, kind = item.get("vendor"), item.get("kind")
    if vendor != _VENDOR and kind not in _KINDS:
        return False
    if (vendor, item.get("format")) != (_VENDOR, _GPU_FORMAT):
        message = f"{_WHAT}: device_evidence: format of an item must be {_GPU_FORMAT}"
        raise FormatError(message, reason="unsupported")
    return True


def _keys(material: bytes) -> dict[str, bytes]:
    """Return `data` of each item in `material`, the section `crypto_material`, by its `id`."""
    found: dict[str, bytes] = {}
    for item in _items(material):
        name = strict_json.string(item, "id", what=f"{_WHAT}: crypto_material")
        if name in found:
            message = f"{_WHAT}: crypto_material: ids of items must be unique"
            raise FormatError(message, reason="duplicate")
        data = strict_json.string(item, "data", what=f"{_WHAT}: crypto_material")
        found[name] = utf8(data, f"{_WHAT}: crypto_material", FormatError)
    return found


def _items(section: bytes) -> list[dict[str, Any]]:
    found = strict_json.read_object(section, _WHAT).get("items")
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        text = f"{_WHAT}: items of a section: must be a list of objects"
        raise FormatError(text, reason="wrong_type")
    return found


def _object(members: dict[str, Any], name: str) -> dict[str, Any]:
    found = members.get(name)
    if not isinstance(found, dict):
        raise FormatError(f"{_WHAT}: {name}: must be an object", reason="wrong_type")
    return found
