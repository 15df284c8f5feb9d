"""Evidence of GPUs and switches: its JSON, one device's check, and its relation to CPU evidence.

NVIDIA's SDKs write a list of devices, alone or as `evidences` beside the result of the collection.
Requests to NVIDIA's attestation service and several providers have it as `evidence_list`,
Confidential Containers as `device_evidence_list`.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from attestkit._argument_checks import require_size, utf8, wrong_type
from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem, split_pem
from attestkit._formats.strict_json import from_base64, from_hex, read, string, wrong_json_type
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.architectures import (
    ARCHITECTURES,
    Architecture,
    DeviceKind,
    DeviceLabel,
    find_architecture,
    kind_of,
)
from attestkit.gpu.device.device_chain import (
    MAX_CERTIFICATES,
    DeviceChain,
    read_device_chain,
    verify_device_chain,
)
from attestkit.gpu.device.report import MAX_SIZE as MAX_REPORT
from attestkit.gpu.device.report import Report
from attestkit.gpu.result import GpuBindingKind

MAX_SIZE: Final = 4 << 20
"""Maximum size of the JSON in bytes."""
MAX_DEVICES: Final = 64
"""Maximum number of devices."""
MAX_CHAIN: Final = 0x1400
"""Maximum size of the PEM text of a chain in bytes: that of NVML's structure."""
_SUBJECT: Final = "GPU evidence"
_LISTS: Final = ("evidences", "evidence_list", "device_evidence_list")
_NONCE_SIZE: Final = 32
_HEX_REPORT: Final = "11e0"  # SPDM version and request code
_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class DeviceEvidence:
    """Report and certificate chain of one device, not verified."""

    architecture: Architecture | None  # as stated by the sender; None if not stated
    report: bytes = field(repr=False)
    certificates: tuple[bytes, ...] = field(repr=False)  # DER, leaf first
    nonce: bytes | None = None  # 32 bytes, as stated by the sender; None if not stated

    @property
    def kind(self) -> DeviceKind:
        """`gpu` or `switch`, by the architecture that the sender states; `gpu` by default."""
        return kind_of(self.architecture)

    @property
    def chain_pem(self) -> bytes:
        """The certificates in PEM, leaf first."""
        texts = [encode_pem(CERTIFICATE_LABEL, der) for der in self.certificates]
        return "".join(texts).encode("ascii")

    def to_object(self) -> dict[str, str]:
        """Return the device in NVIDIA's JSON: `certificate` (PEM) and `evidence`, each in base64.

        With `arch` and `nonce` (hex), if they are stated.
        """
        members = {
            "certificate": b64encode(self.chain_pem).decode("ascii"),
            "evidence": b64encode(self.report).decode("ascii"),
        }
        if self.architecture is not None:
            members["arch"] = self.architecture
        if self.nonce is not None:
            members["nonce"] = self.nonce.hex()
        return dict(sorted(members.items()))


@dataclass(frozen=True, slots=True)
class GpuEvidence:
    """Evidence of the devices of one machine, not verified.

    Attributes:
        devices: 1 to 64 devices.
        raw: The JSON as it was received, which a hash in CPU evidence covers.
    """

    devices: tuple[DeviceEvidence, ...]
    raw: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """Check the number of devices; if `raw` is empty, set it to their JSON.

        Raises:
            FormatError: If the number of devices is not 1 to 64.
        """
        _check_count(len(self.devices))
        if not self.raw:
            entries = [device.to_object() for device in self.devices]
            text = json.dumps(entries, separators=(",", ":"))
            object.__setattr__(self, "raw", text.encode("ascii"))

    @classmethod
    def from_json(cls, data: bytes | str) -> "GpuEvidence":
        """Decode evidence of NVIDIA's SDKs, or of a provider with the same devices.

        Args:
            data: JSON, at most 4 MiB.

        Raises:
            FormatError: If the JSON or the encoding of a report or chain is malformed or too large,
                or it has no device or over 64. Reports and certificates are not parsed.
            UsageError: If `data` is neither `bytes` nor `str`.
        """
        if not isinstance(data, (bytes, str)):
            raise wrong_type(_SUBJECT, "bytes or str", data)
        raw = utf8(data, _SUBJECT, FormatError) if isinstance(data, str) else data
        if len(raw) > MAX_SIZE:
            raise _bad(f"{len(raw)} bytes, at most {MAX_SIZE}", "too_large")
        return cls(read_devices(read(raw, _SUBJECT)), raw)

    def to_json(self) -> bytes:
        """Return `raw`: the JSON as received, otherwise a list in the format of NVIDIA's SDKs."""
        return self.raw


def read_devices(value: object) -> tuple[DeviceEvidence, ...]:
    """Read the devices of decoded JSON: a list, or an object with such a list.

    Its member is `evidences`, `evidence_list` or `device_evidence_list`.

    Raises:
        FormatError: If the value is malformed, has no device or more than 64, or its `result_code`
            states that the collection failed.
    """
    entries, shared = value, {}
    if isinstance(value, dict):
        names = [name for name in _LISTS if name in value]
        if len(names) != 1:
            problem = f"must have exactly one of the lists {', '.join(_LISTS)}"
            raise _bad(problem, "inconsistent" if names else "missing")
        if value.get("result_code", 0) != 0:
            raise _bad("result_code: must be 0; the collection failed", "wrong_value")
        entries, shared = value[names[0]], value
    if not isinstance(entries, list):
        raise _bad("must be a list of devices", "wrong_type")
    _check_count(len(entries))
    return tuple([read_device(entry, at, shared) for at, entry in enumerate(entries)])


def _check_count(count: int) -> None:
    if not count:
        raise _bad("must have a device; collect evidence of a machine with GPUs", "missing")
    if count > MAX_DEVICES:
        raise _bad(f"{count} devices, at most {MAX_DEVICES}", "too_many")


def read_device(value: object, index: int = 0, shared: Mapping[str, Any] = {}) -> DeviceEvidence:
    """Read one device of decoded JSON.

    Args:
        value: An object with members `evidence` and `certificate`, optionally `arch` and `nonce`.
        index: Index of the device, for errors.
        shared: An object with `arch` and `nonce` of all devices, which those of `value` override.

    Raises:
        FormatError: If the value is malformed.
    """
    what = f"{_SUBJECT}: device {index}"
    if not isinstance(value, dict):
        raise wrong_json_type(what, "a JSON object", value)
    stated = {"arch": shared.get("arch"), "nonce": shared.get("nonce")}
    stated |= {name: value[name] for name in stated if value.get(name) is not None}
    nonce = stated["nonce"]
    return DeviceEvidence(
        _architecture(stated, what),
        _report(value, what),
        _certificates(value, what),
        None if nonce is None else from_hex(nonce, f"{what}: nonce", _NONCE_SIZE),
    )


def _architecture(stated: Mapping[str, Any], what: str) -> Architecture | None:
    if stated["arch"] is None:
        return None
    word = string(stated, "arch", what=what)
    found = find_architecture(word)
    if found is None:
        message = f"{what}: arch: must be {', '.join(ARCHITECTURES)}, not {shown(word)}"
        raise FormatError(message, reason="unsupported")
    return found


def _report(value: Mapping[str, Any], what: str) -> bytes:
    """Return the report in the member `evidence` of `value`: base64, hex, or hex inside base64.

    `what` is the device's name, with which errors begin.
    """
    subject = f"{what}: evidence"
    text = value.get("evidence")
    _check_length(text, 2 * MAX_REPORT * 4 // 3 + 4, subject)
    if isinstance(text, str) and text[:4].lower() == _HEX_REPORT:
        report = from_hex(text, subject)
    else:
        report = from_base64(text, subject)
        if report[:4].lower() == _HEX_REPORT.encode() and _HEX_DIGITS.issuperset(report):
            report = from_hex(report.decode("ascii"), subject)
    if not 0 < len(report) <= MAX_REPORT + 1:  # with a NUL after the signature
        problem = f"{subject}: must be 1 to {MAX_REPORT} bytes, not {len(report)}"
        raise FormatError(problem, reason="too_large" if report else "missing")
    return report


def _certificates(value: Mapping[str, Any], what: str) -> tuple[bytes, ...]:
    """Return the chain (DER) in the member `certificate` of `value`: PEM in base64.

    NUL bytes and other text around the PEM blocks are ignored. `what` is the device's name, with
    which errors begin.
    """
    subject = f"{what}: certificate"
    text = value.get("certificate")
    _check_length(text, MAX_CHAIN * 4 // 3 + 4, subject)
    try:
        return _split_chain(string(value, "certificate"))
    except FormatError as error:
        raise FormatError(f"{what}: {error.message}", reason=error.reason) from error


# The chain of a device is the same in all its evidence.
@lru_cache(maxsize=128)
def _split_chain(text: str) -> tuple[bytes, ...]:
    pem = from_base64(text, "certificate")
    if len(pem) > MAX_CHAIN:
        message = f"certificate: {len(pem)} bytes, at most {MAX_CHAIN}"
        raise FormatError(message, reason="too_large")
    try:
        found = split_pem(pem.decode("ascii"))
    except UnicodeDecodeError as error:
        raise FormatError("certificate: must be ASCII text", reason="encoding") from error
    except FormatError as error:
        raise FormatError(f"certificate: {error.message}", reason=error.reason) from error
    if len(found) > MAX_CERTIFICATES:
        message = f"certificate: {len(found)} certificates, at most {MAX_CERTIFICATES}"
        raise FormatError(message, reason="too_many")
    return tuple(found)


def _check_length(text: object, most: int, subject: str) -> None:
    if isinstance(text, str) and len(text) > most:
        message = f"{subject}: {len(text)} characters, at most {most}"
        raise FormatError(message, reason="too_large")


def _bad(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"{_SUBJECT}: {problem}", reason=reason)


def verify_device(
    device: DeviceEvidence, label: DeviceLabel, root: bytes, now: datetime, *, strip_nul: bool
) -> tuple[Report, DeviceChain]:
    """Return a device's parsed report, and its verified chain with the root.

    The signature of the report is not verified.

    Args:
        device: Evidence of the device.
        label: Name of the device in errors.
        root: The trusted root in DER.
        now: An aware datetime.
        strip_nul: Whether to accept one NUL byte after the report's signature.

    Raises:
        GpuEvidenceError: If the report is malformed (`format`), or the chain is malformed or not
            valid (`device_chain`).
    """
    with label.refused_as("format"):
        report = Report.parse(device.report, strip_nul=strip_nul)
    with label.refused_as("device_chain"):
        return report, verify_device_chain(read_device_chain(device.certificates), root, now)


@dataclass(frozen=True, slots=True)
class GpuBinding:
    """GPU evidence in an answer of a system such as vllm-proxy, and the report data that cover it.

    Readers of `attestkit.gpu.bindings` return it.

    Pass it to `Verifier.verify` as `gpu`, without `nonce` and `report_data`. `gpu_nonce` (32 bytes)
    is the nonce that the GPUs' reports must have, and `report_data` (64 bytes) the report data that
    the CPU's evidence must have. `committed` has other values whose hash the report data contain,
    such as keys, by name.

    Raises:
        UsageError: If `gpu_nonce` or `report_data` has the wrong size, or `kind` is not `nonce` or
            `report_data`.
    """

    system: str  # such as vllm-proxy
    kind: GpuBindingKind  # `nonce` or `report_data`
    evidence: GpuEvidence
    nonce: bytes = field(repr=False)  # that the verifier chose
    gpu_nonce: bytes = field(repr=False)  # that the reports of the GPUs must have, 32 bytes
    report_data: bytes = field(repr=False)  # that the CPU's evidence must have, 64 bytes
    # Other values whose hash the report data contain, by name: addresses and keys.
    committed: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_size("gpu_nonce", self.gpu_nonce, 32)
        require_size("report_data", self.report_data, 64)
        if self.kind not in ("nonce", "report_data"):
            message = f"kind: must be nonce or report_data, not {shown(self.kind)}"
            raise UsageError(message, reason="wrong_value")
