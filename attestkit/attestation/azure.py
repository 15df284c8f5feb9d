"""HCL reports: a hardware report of a paravisor, with the runtime data whose hash it contains.

Azure's paravisor (the host compatibility layer, HCL, or OpenHCL) writes one to NV index 0x01400001
of the TPM that it provides; OpenHCL's source has the layout. Integers are little-endian.

Only the hardware report and the runtime data are authenticated: the report is signed, and its
report data are the SHA-256 of the runtime data. Parsing verifies neither.
"""

import hmac
import re
from contextlib import suppress
from functools import lru_cache
from struct import Struct
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from attestkit._argument_checks import require_bytes
from attestkit._crypto.hashes import sha256
from attestkit._crypto.public_key import encode_rsa_spki
from attestkit._formats import strict_json
from attestkit._formats.binary_layout import check_reserved
from attestkit._formats.compact_jws import from_base64url
from attestkit._formats.strict_json import from_hex, number_field, read_object, string
from attestkit._native import unhex
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError

__all__ = ["HclReport", "RuntimeData", "RuntimeKey"]

HclReportType: TypeAlias = Literal["snp", "tdx"]

MAX_SIZE: Final = 65_535
"""Largest size in bytes: that of an NV index, whose size has 16 bits. Azure's have 2,600."""

TD_REPORT_SIZE: Final = 1024
USER_DATA_SIZE: Final = 64

_HEADER: Final = Struct("<4sIIII12x")
_BLOCK: Final = Struct("<IIIII")
_COUNT: Final = Struct("<I")  # of bytes of the runtime data, before them
_HARDWARE: Final = slice(32, 1216)  # an SEV-SNP report, or a TD report and zeros
_START: Final = 1236  # of the runtime data
_MAGIC: Final = b"HCLA"
_ATTESTATION: Final = 2  # request type
_SHA256: Final = 1
_TYPES: Final[dict[int, HclReportType]] = {2: "snp", 4: "tdx"}
_OTHER_TYPES: Final = {0: "invalid", 1: "VBS", 3: "TVM", 5: "CCA"}

_USER_DATA: Final = b',"user-data":"'  # behind other members; the value follows
_NO_USER_DATA: Final = b',"user-data":null}'

_MAX_KEYS: Final = 16
_KEY_BYTES: Final = range(256, 1025)  # of a modulus: 2048 to 8192 bits
_MAX_EXPONENT: Final = 1 << 32  # a TPM's public area has 32 bits
_MAX_TEXT: Final = 128
_TEXT: Final = re.compile(r"[ -~]*")

# Members of `vm-configuration`, their names here, and their types.
_CONFIGURATION: Final[tuple[tuple[str, str, type], ...]] = (
    ("vmUniqueId", "vm_unique_id", str),
    ("secure-boot", "secure_boot", bool),
    ("console-enabled", "console_enabled", bool),
    ("interactive-console-enabled", "interactive_console_enabled", bool),
    ("tpm-enabled", "tpm_enabled", bool),
    ("tpm-persisted", "tpm_persisted", bool),
    ("filtered-vpci-devices-allowed", "filtered_vpci_devices_allowed", bool),
    ("root-cert-thumbprint", "root_cert_thumbprint", str),
    ("hardware-sealing-policy", "hardware_sealing_policy", str),
    ("vmgs-provisioner", "vmgs_provisioner", str),
    ("current-time", "current_time", int),
)


class RuntimeKey(NamedTuple):
    """An RSA public key of a TPM, from a JSON Web Key (RFC 7517)."""

    modulus: bytes  # big-endian, without leading zeros; 2048 to 8192 bits
    exponent: int  # odd, 65537 to 2**32 - 1
    operations: tuple[str, ...]  # `key_ops`; not reliable: early attestation keys have `encrypt`

    @property
    def spki(self) -> bytes:
        """The key as SubjectPublicKeyInfo in DER."""
        return encode_rsa_spki(self.modulus, self.exponent)


class RuntimeData(NamedTuple):
    """Content of the runtime data: keys of the TPM, and claims of the paravisor."""

    attestation_key: RuntimeKey  # HCLAkPub
    endorsement_key: RuntimeKey | None  # HCLEkPub; None in early reports
    # Names with `_` for `-`, and values: text, `true`, `false` or decimal digits.
    configuration: tuple[tuple[str, str], ...]
    user_data: bytes | None  # 64 bytes, as the guest wrote them; None in early reports

    @classmethod
    def parse(cls, text: bytes) -> "RuntimeData":
        """Parse `text`, the JSON document of an HCL report; unknown members are ignored.

        Raises:
            FormatError: If it is malformed, a member occurs twice, there is not exactly one
                HCLAkPub, or a key is not RSA of 2048 to 8192 bits.
        """
        # Those of a VM differ in the user data at their end only, so the rest is cached. Where the
        # rest is a valid document with null in place of this text in hex, the text is the value of
        # its last member: no other token can be between the quotes.
        rest, member, value = text.rpartition(_USER_DATA)
        user_data = unhex(value[:-2]) if member and value[-2:] == b'"}' else None
        if user_data is not None and len(user_data) == USER_DATA_SIZE and len(text) <= MAX_SIZE:
            with suppress(FormatError):
                return _kept_runtime_data(rest + _NO_USER_DATA)._replace(user_data=user_data)
        return _parse_runtime_data(text)


class HclReport(NamedTuple):
    """A parsed HCL report; neither signature nor hash is verified."""

    version: int  # 1 or 2, with the same layout
    report_type: HclReportType
    hardware_report: bytes  # SEV-SNP report, 1184 bytes; or TD report, 1024 bytes
    runtime_data: bytes  # JSON, exactly the hashed bytes
    content: RuntimeData

    @classmethod
    def parse(cls, data: bytes) -> "HclReport":
        """Parse a report of at most 65,535 bytes, which may be zero-padded to its NV index's size.

        Raises:
            FormatError: If the report or its runtime data are malformed, or it is of another type
                than SEV-SNP or TDX.
            UsageError: If `data` is not `bytes`.
        """
        require_bytes("HCL report", data)
        if len(data) > MAX_SIZE:
            raise _bad("too_large", f"{len(data)} bytes, at most {MAX_SIZE}")
        version = _read_header(data)
        report_type, size = _read_block(data)
        end = _START + size
        zeros = [(20, 32), (end, len(data))]
        if report_type == "tdx":
            zeros.append((_HARDWARE.start + TD_REPORT_SIZE, _HARDWARE.stop))
        check_reserved("HCL report", data, zeros)
        hardware = data[_HARDWARE]
        if report_type == "tdx":
            hardware = hardware[:TD_REPORT_SIZE]
        runtime_data = data[_START:end]
        return cls(version, report_type, hardware, runtime_data, RuntimeData.parse(runtime_data))

    @classmethod
    def create(
        cls, report_type: HclReportType, hardware_report: bytes, runtime_data: bytes
    ) -> "HclReport":
        """Return a report of version 2 for a simulated paravisor.

        Args:
            report_type: The kind of `hardware_report`.
            hardware_report: 1184 bytes for SEV-SNP, 1024 bytes for TDX.
            runtime_data: JSON whose SHA-256 is in the report data of `hardware_report`.

        Raises:
            UsageError: If the hardware report has another size.
            FormatError: If the runtime data are malformed.
        """
        size = TD_REPORT_SIZE if report_type == "tdx" else _HARDWARE.stop - _HARDWARE.start
        if len(hardware_report) != size:
            message = f"hardware report: must be {size} bytes, not {len(hardware_report)}"
            raise UsageError(message, reason="wrong_size")
        return cls(2, report_type, hardware_report, runtime_data, RuntimeData.parse(runtime_data))

    def encode(self, size: int = 0) -> bytes:
        """Return the report as `parse` reads it, zero-padded to at least `size` bytes."""
        count = len(self.runtime_data)
        number = next(n for n, name in _TYPES.items() if name == self.report_type)
        return b"".join(
            (
                _HEADER.pack(_MAGIC, self.version, _START + count, _ATTESTATION, 0),
                self.hardware_report.ljust(_HARDWARE.stop - _HARDWARE.start, b"\0"),
                _BLOCK.pack(_BLOCK.size + count, 1, number, _SHA256, count),
                self.runtime_data,
            )
        ).ljust(size, b"\0")

    @property
    def report_data(self) -> bytes:
        """The report data of the hardware report: SHA-256 of the runtime data, and 32 zeros."""
        return sha256(self.runtime_data) + bytes(32)

    def binds(self, report_data: bytes) -> bool:
        """Return whether `report_data`, 64 bytes, are those that the hardware report must have."""
        return hmac.compare_digest(self.report_data, report_data)


def is_hcl_report(data: bytes) -> bool:
    """Return whether `data`, the content of an NV index, begins like an HCL report ("HCLA")."""
    return data.startswith(_MAGIC)


def _bad(reason: FormatReason, problem: str, offset: int | None = None) -> FormatError:
    return FormatError(f"HCL report: {problem}", reason=reason, offset=offset)


def _read_header(data: bytes) -> int:
    """Check header and size of a whole report in `data`; return the report's version, 1 or 2."""
    if len(data) < _START:
        raise _bad("truncated", f"truncated: {len(data)} bytes, at least 1236", len(data))
    magic, version, size, request_type, status = _HEADER.unpack_from(data)
    (count,) = _COUNT.unpack_from(data, _START - _COUNT.size)
    if magic != _MAGIC:
        raise _bad("unrecognized", "does not begin with HCLA", 0)
    if version not in (1, 2):
        raise _bad("unsupported_version", f"version must be 1 or 2, not {version}", 4)
    if request_type != _ATTESTATION:
        raise _bad("wrong_value", f"request type must be 2, not {request_type}", 12)
    if status:
        raise _bad("wrong_value", f"status must be 0, not {status:#x}; request it again", 16)
    if size != _START + count:
        raise _bad("inconsistent", f"report size must be {_START + count}, not {size}", 8)
    if size > len(data):
        raise _bad("truncated", f"truncated: {len(data)} of {size} bytes", len(data))
    return int(version)


def _read_block(data: bytes) -> tuple[HclReportType, int]:
    """Check the runtime data's header in a report; return the report's type and the JSON's size."""
    size, version, number, algorithm, count = _BLOCK.unpack_from(data, _HARDWARE.stop)
    at = _HARDWARE.stop
    if version != 1:
        problem = f"version of the runtime data must be 1, not {version}"
        raise _bad("unsupported_version", problem, at + 4)
    if size != _BLOCK.size + count:
        problem = f"size of the runtime data must be {_BLOCK.size + count}, not {size}"
        raise _bad("inconsistent", problem, at)
    if (report_type := _TYPES.get(number)) is None:
        name = _OTHER_TYPES.get(number, "unknown")
        problem = f"report type must be 2 (SEV-SNP) or 4 (TDX), not {number} ({name})"
        raise _bad("unsupported", problem, at + 8)
    if algorithm != _SHA256:
        problem = f"hash algorithm must be 1 (SHA-256), not {algorithm}"
        raise _bad("unsupported_algorithm", problem, at + 12)
    return report_type, count


def _parse_runtime_data(text: bytes) -> RuntimeData:
    fields = read_object(text, "HCL runtime data")
    try:
        keys = _keys(fields)
        return RuntimeData(keys[0], keys[1], _configuration(fields), _user_data(fields))
    except FormatError as error:
        raise FormatError(f"HCL runtime data: {error.message}", reason=error.reason) from error


_kept_runtime_data = lru_cache(maxsize=16)(_parse_runtime_data)


def _keys(fields: dict[str, Any]) -> tuple[RuntimeKey, RuntimeKey | None]:
    """Return HCLAkPub and HCLEkPub (None if missing) from the members of the runtime data."""
    listed = fields.get("keys")
    if not isinstance(listed, list):
        raise strict_json.wrong_json_type("keys", "an array", listed)
    if len(listed) > _MAX_KEYS:
        raise FormatError(f"keys: at most {_MAX_KEYS} keys", reason="too_many")
    found: dict[str, RuntimeKey] = {}
    for item in listed:
        if not isinstance(item, dict):
            raise FormatError("keys: each must be an object", reason="wrong_type")
        kid = string(item, "kid")
        if kid not in {"HCLAkPub", "HCLEkPub"}:
            continue
        if kid in found:
            raise FormatError(f"keys: two have the kid {kid}", reason="duplicate")
        found[kid] = _key(item, kid)
    if "HCLAkPub" not in found:
        raise FormatError("keys: HCLAkPub missing", reason="missing")
    return found["HCLAkPub"], found.get("HCLEkPub")


def _key(item: dict[str, Any], kid: str) -> RuntimeKey:
    if (kind := string(item, "kty")) != "RSA":
        message = f"{kid}: kty must be RSA, not {shown(kind)}"
        raise FormatError(message, reason="unsupported_algorithm")
    modulus, number = _numbers(string(item, "n"), string(item, "e"), kid)
    return RuntimeKey(modulus, number, _operations(item, kid))


@lru_cache(maxsize=64)  # all reports of a VM have the same keys
def _numbers(n: str, e: str, kid: str) -> tuple[bytes, int]:
    """Return modulus (big-endian) and exponent of a JSON Web Key; `kid` names it in errors."""
    modulus = from_base64url(n, f"{kid}: n")
    exponent = from_base64url(e, f"{kid}: e")
    if not modulus or not exponent or not modulus[0] or not exponent[0]:
        raise FormatError(f"{kid}: n or e has leading zeros", reason="not_canonical")
    if len(modulus) not in _KEY_BYTES or modulus[0] < 0x80:
        bits = int.from_bytes(modulus[:1], "big").bit_length() + 8 * (len(modulus) - 1)
        message = f"{kid}: n must have 2048 to 8192 bits, a multiple of 8, not {bits}"
        raise FormatError(message, reason="wrong_size")
    number = int.from_bytes(exponent[:5], "big")
    if not 65537 <= number < _MAX_EXPONENT or not number & 1 or not modulus[-1] & 1:
        message = f"{kid}: e must be odd, 65537 to 2**32 - 1, and n odd"
        raise FormatError(message, reason="wrong_value")
    return modulus, number


def _operations(item: dict[str, Any], kid: str) -> tuple[str, ...]:
    found = item.get("key_ops", [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise FormatError(f"{kid}: key_ops must be an array of text", reason="wrong_type")
    return tuple(found)


def _configuration(fields: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    members = fields.get("vm-configuration", {})
    if not isinstance(members, dict):
        raise strict_json.wrong_json_type("vm-configuration", "an object", members)
    found = []
    for member, name, kind in _CONFIGURATION:
        if member in members:
            found.append((name, _claim(members, member, kind)))
    return tuple(found)


def _claim(members: dict[str, Any], name: str, kind: type) -> str:
    """Return member `name` of `vm-configuration` as text; its value must be of type `kind`."""
    value, where = members[name], f"vm-configuration: {name}"
    if type(value) is not kind:
        raise FormatError(f"{where}: must be {kind.__name__}", reason="wrong_type")
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(number_field(members, name, 63))
    text = str(value)
    if len(text) > _MAX_TEXT or not _TEXT.fullmatch(text):
        message = f"{where}: must be at most {_MAX_TEXT} printable ASCII characters"
        raise FormatError(message, reason="wrong_value")
    return text


def _user_data(fields: dict[str, Any]) -> bytes | None:
    value = fields.get("user-data")
    return None if value is None else from_hex(value, "user-data", USER_DATA_SIZE)
