"""Claims of NRAS about a device, of versions 2.0 and 3.0, in one class."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Final, Literal, NamedTuple

from attestkit._formats.strict_json import from_hex
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError

ClaimsVersion = Literal["2.0", "3.0"]

_MAX_TEXT: Final = 256  # characters of a text
_MAX_DESCRIPTION: Final = 1024  # characters of the texts of an error, and of a warning
_MAX_MISMATCHES: Final = 256
_NONCE_SIZE: Final = 32
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_MATCHING: Final = frozenset({"success", "comparison-successful"})
_CHAIN: Final = "-cert-chain"


class CertificateClaims(NamedTuple):
    """Claims about a certificate chain; in version 2.0 only `status`: valid or invalid."""

    status: str  # valid, invalid, revoked or expired
    ocsp_status: str | None  # good, revoked or unknown
    expires_at: datetime | None  # aware
    revocation_reason: str | None
    ocsp_nonce_matches: bool | None  # of NVIDIA's local tools, as the next one
    ocsp_response_valid: bool | None

    @property
    def is_valid(self) -> bool:
        """Whether no claim reports a problem; missing claims are ignored."""
        return (
            self.status == "valid"
            and self.ocsp_status in {None, "good"}
            and self.ocsp_nonce_matches is not False
            and self.ocsp_response_valid is not False
        )

    @property
    def is_on_hold(self) -> bool:
        """Whether a certificate is revoked as certificateHold, and nothing else is wrong."""
        reason = (self.revocation_reason or "").replace("_", "").lower()
        return (
            reason == "certificatehold"
            and self.status in {"valid", "revoked"}
            and self.ocsp_status == "revoked"
            and self.ocsp_nonce_matches is not False
            and self.ocsp_response_valid is not False
        )


class RimClaims(NamedTuple):
    """Claims about a RIM; None if a version has no such claim, or it is missing."""

    fetched: bool | None
    schema_validated: bool | None
    signature_verified: bool | None
    version_matches: bool | None  # from version 3.0 on
    measurements_available: bool | None
    certificates: CertificateClaims | None


class DeviceRefusal(NamedTuple):
    """Error of NVIDIA's service about a device, in place of claims: number and service's texts."""

    code: int  # such as 4010: the nonce is not that of the evidence
    message: str
    description: str


@dataclass(frozen=True, slots=True)
class DeviceClaims:
    """Claims of an NRAS token about a device; a missing claim is None."""

    name: str  # such as GPU-0
    kind: Literal["gpu", "switch"]
    version: ClaimsVersion
    nonce: bytes | None  # 32 bytes
    measurements_match: bool | None
    secure_boot: bool | None
    debug_status: str | None  # disabled, if the measurements match
    hardware_model: str | None  # GH100, or from version 3.0 on GH100 A01 GSP BROM
    ueid: str | None  # decimal serial number of the leaf certificate
    oem_id: str | None
    driver_version: str | None
    vbios_version: str | None
    architecture_matches: bool | None
    report_parsed: bool | None
    nonce_matches: bool | None
    report_signature_verified: bool | None
    fwid_matches: bool | None  # from version 3.0 on
    certificates: CertificateClaims | None
    driver_rim: RimClaims | None  # None for a switch
    vbios_rim: RimClaims
    no_index_conflict: bool | None  # between the two RIMs
    warning: str | None
    mismatches: int | None  # number of measurements that differ
    error: DeviceRefusal | None
    claims: Mapping[str, Any] = field(repr=False)  # all of them, as received

    def problems(self, *, allow_hold: bool = False) -> tuple[str, ...]:
        """Return why the claims do not accept the device, in a few words each; empty if they do.

        Args:
            allow_hold: Whether certificates of RIMs may be on hold.
        """
        return tuple(_problems(self, allow_hold=allow_hold))


def read_claims(claims: Mapping[str, Any], name: str) -> DeviceClaims:
    """Read the claims of a token about a device; unknown ones are in `DeviceClaims.claims` only.

    Args:
        claims: Payload of the token.
        name: Name of the device, such as GPU-0; the claims are of a switch if it begins with
            `SWITCH-`.

    Raises:
        FormatError: If a claim is malformed, contradicts another one or the name, or the version of
            the claims is not 2.0 or 3.0.
    """
    return _ClaimsReader(claims, f"claims of {name}").read(name)


class _ClaimsReader:
    """Reader of claims. `what` is the subject of errors; `prefix` is part of most claims' names."""

    def __init__(self, claims: Mapping[str, Any], what: str, prefix: str = "") -> None:
        self._claims = claims
        self._what = what
        self._prefix = prefix

    def read(self, name: str) -> DeviceClaims:
        """Return all claims about the device `name`."""
        is_switch = name.startswith("SWITCH-")
        self._prefix = f"x-nvidia-{'switch' if is_switch else 'gpu'}-"
        kind: Literal["gpu", "switch"] = "switch" if is_switch else "gpu"
        stated = self.text("x-nvidia-device-type")
        if stated not in {None, kind, f"nv{kind}"}:
            problem = f"must be {kind}, as in the name of the device"
            raise self.bad("x-nvidia-device-type", problem, "inconsistent")
        bios = "bios" if is_switch else "vbios"
        measured = self.text("measres")
        debug = self.text("dbgstat")
        nonce = self.text("eat_nonce")
        report = "attestation-report"
        return DeviceClaims(
            name=name,
            kind=kind,
            version=self._version(report),
            nonce=None
            if nonce is None
            else from_hex(nonce, f"{self._what}: eat_nonce", _NONCE_SIZE),
            measurements_match=None if measured is None else measured in _MATCHING,
            secure_boot=self.flag("secboot"),
            debug_status=debug,
            hardware_model=self.text("hwmodel"),
            ueid=self.text("ueid"),
            oem_id=self.text("oemid"),
            driver_version=self.text("driver-version", prefixed=True),
            vbios_version=self.text(f"{bios}-version", prefixed=True),
            architecture_matches=self._check("arch-check"),
            report_parsed=self._check(f"{report}-parsed"),
            nonce_matches=self._check(f"{report}-nonce-match"),
            report_signature_verified=self._check(f"{report}-signature-verified"),
            fwid_matches=self._check(f"{report}{_CHAIN}-fwid-match"),
            certificates=self._certificates(f"{report}{_CHAIN}", f"{report}{_CHAIN}-validated"),
            driver_rim=None if is_switch else self._rim("driver-rim"),
            vbios_rim=self._rim(f"{bios}-rim"),
            no_index_conflict=self._check(f"{bios}-index-no-conflict"),
            warning=self.text("x-nvidia-attestation-warning", most=_MAX_DESCRIPTION),
            mismatches=self._mismatches(),
            error=self._error(),
            claims=self._claims,
        )

    def _version(self, report: str) -> ClaimsVersion:
        """Return the version of the claims by their structure; FormatError if they state the other.

        `report` is the name of the claims about the report, without prefix.
        """
        stated = self.text("claims-version", prefixed=True)
        form: ClaimsVersion = "3.0" if self.get(f"{report}{_CHAIN}") is not None else "2.0"
        if stated not in {None, "2.0", "3.0"}:
            problem = f"{shown(stated or '')} is not supported; update attestkit"
            raise self.bad(f"{self._prefix}claims-version", problem, "unsupported_version")
        if stated is not None and stated != form:
            problem = f"must be {form}, by the structure of the other claims"
            raise self.bad(f"{self._prefix}claims-version", problem, "inconsistent")
        return form

    def _rim(self, name: str) -> RimClaims:
        return RimClaims(
            self._check(f"{name}-fetched"),
            self._check(f"{name}-schema-validated"),
            self._check(f"{name}-signature-verified"),
            self._check(f"{name}-version-match"),
            self._check(f"{name}-measurements-available"),
            self._certificates(f"{name}{_CHAIN}", f"{name}-cert-validated"),
        )

    def _certificates(self, name: str, flag: str) -> CertificateClaims | None:
        """Read claims about certificates: the object `name`, or the flag `flag` of version 2.0.

        None if both are missing.

        Raises:
            FormatError: If a claim is malformed, or the object has no status.
        """
        value = self.get(name)
        if value is None:
            valid = self._check(flag)
            if valid is None:
                return None
            flagged = "valid" if valid else "invalid"
            return CertificateClaims(flagged, None, None, None, None, None)
        if not isinstance(value, dict):
            raise self.bad(f"{self._prefix}{name}", "must be an object", "wrong_type")
        inner = _ClaimsReader(value, f"{self._what}: {self._prefix}{name}", "x-nvidia-cert-")
        status = inner.text("status", prefixed=True)
        if status is None:
            raise inner.bad("x-nvidia-cert-status", "missing", "missing")
        return CertificateClaims(
            status,
            inner.text("ocsp-status", prefixed=True),
            inner.time("expiration-date"),
            inner.text("revocation-reason", prefixed=True),
            inner._check("ocsp-nonce-matches"),
            inner._check("ocsp-response-valid"),
        )

    def _mismatches(self) -> int | None:
        name = "x-nvidia-mismatch-measurement-records"
        value = self._claims.get(name)
        if value is None:
            return 0 if name in self._claims else None
        if not isinstance(value, list):
            raise self.bad(name, "must be a list", "wrong_type")
        if len(value) > _MAX_MISMATCHES:
            raise self.bad(name, f"{len(value)} items, at most {_MAX_MISMATCHES}", "too_many")
        return len(value)

    def _error(self) -> DeviceRefusal | None:
        name = "x-nvidia-error-details"
        value = self._claims.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(name, "must be an object", "wrong_type")
        code = value.get("code")
        if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code < 1 << 31:
            raise self.bad(name, "code must be 0 to 2147483647", "wrong_value")
        inner = _ClaimsReader(value, f"{self._what}: {name}")
        message, description = (
            inner.text(part, most=_MAX_DESCRIPTION) or "" for part in ("message", "description")
        )
        return DeviceRefusal(code, message, description)

    def get(self, name: str) -> object:
        """Return the claim named prefix and `name`; None if it is missing."""
        return self._claims.get(self._prefix + name)

    def _check(self, name: str) -> bool | None:
        """Return the flag named prefix and `name`; None if it is missing or null."""
        return self.flag(self._prefix + name)

    def flag(self, name: str) -> bool | None:
        """Return the flag `name`; None if it is missing or null."""
        value = self._claims.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.bad(name, "must be true or false", "wrong_type")
        return value

    def text(self, name: str, *, prefixed: bool = False, most: int = _MAX_TEXT) -> str | None:
        """Return the text `name`, of at most `most` characters; None if it is missing or null.

        With `prefixed` the claim is named prefix and `name`.
        """
        name = f"{self._prefix}{name}" if prefixed else name
        value = self._claims.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.bad(name, "must be a string", "wrong_type")
        if len(value) > most:
            raise self.bad(name, f"{len(value)} characters, at most {most}", "too_large")
        return value

    def time(self, name: str) -> datetime | None:
        """Return the time named prefix and `name`; None if it is missing.

        A time is text such as 9999-12-31T23:59:59Z.
        """
        text = self.text(name, prefixed=True)
        if text is None:
            return None
        try:
            if _TIME.fullmatch(text):
                return datetime.fromisoformat(text[:-1]).replace(tzinfo=timezone.utc)
        except ValueError:
            pass  # such as the 30th of February
        raise self.bad(self._prefix + name, f"must be a time in UTC: {shown(text)}", "wrong_value")

    def bad(self, name: str, problem: str, reason: FormatReason) -> FormatError:
        """Return an error about the claim `name`, with text `problem` after it."""
        return FormatError(f"{self._what}: {name}: {problem}", reason=reason)


def _problems(device: DeviceClaims, *, allow_hold: bool) -> Iterator[str]:
    if device.error is not None:
        yield f"error {device.error.code} of the service: {shown(device.error.message)}"
        return
    is_old = device.version == "2.0"
    required = {
        "measurements do not match": device.measurements_match,
        "secure boot is not on": device.secure_boot,
        "debugging is not disabled": device.debug_status == "disabled",
        "the architecture differs": device.architecture_matches,
        "the report was not parsed": device.report_parsed,
        "the report's nonce differs": device.nonce_matches,
        "the report's signature is not verified": device.report_signature_verified,
        "the report's FWID differs": is_old or device.fwid_matches,
        # Switches have one RIM.
        "two RIMs have one index": device.kind == "switch" or device.no_index_conflict,
        "measurements differ": not device.mismatches,
    }
    yield from (problem for problem, holds in required.items() if not holds)
    yield from _certificate_problems("the device", device.certificates, allow_hold=False)
    for name, rim in (("the driver's RIM", device.driver_rim), ("the VBIOS RIM", device.vbios_rim)):
        if rim is not None:
            yield from _rim_problems(name, rim, is_old=is_old)
            yield from _certificate_problems(name, rim.certificates, allow_hold=allow_hold)


def _rim_problems(name: str, rim: RimClaims, *, is_old: bool) -> Iterator[str]:
    required = {
        "was not fetched": rim.fetched,
        "does not fit the schema": rim.schema_validated is not False,  # not a claim of local tools
        "has no valid signature": rim.signature_verified,
        "is not of the device's version": is_old or rim.version_matches,
        "has no measurements": rim.measurements_available,
    }
    yield from (f"{name} {problem}" for problem, holds in required.items() if not holds)


def _certificate_problems(
    name: str, found: CertificateClaims | None, *, allow_hold: bool
) -> Iterator[str]:
    if found is None:
        yield f"nothing about the certificates of {name}"
    elif not found.is_valid and not (allow_hold and found.is_on_hold):
        status = f"{shown(found.status)}, OCSP {shown(found.ocsp_status or 'not stated')}"
        yield f"certificates of {name}: {status}"
