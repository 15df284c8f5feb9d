"""Endorsements of GPU evidence: RIMs, OCSP answers, and tokens and keys of NVIDIA's service."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from attestkit._crypto.x509.ocsp.answer import MAX_ANSWER
from attestkit._crypto.x509.ocsp.check import MAX_ANSWERS, KeptStatuses
from attestkit._formats.typed_json import decode_typed
from attestkit._outcomes.reasons import CollateralReason
from attestkit._sanitize import shown
from attestkit._system.atomic_file import load_document, save_document
from attestkit.errors import CollateralError, ConfigError
from attestkit.gpu.nras.detached_eat import MAX_BUNDLE
from attestkit.gpu.nras.tokens import MAX_JWKS
from attestkit.gpu.rim.document import MAX_SIZE as MAX_RIM
from attestkit.gpu.rim.manifest import IDENTIFIER

if TYPE_CHECKING:
    from attestkit.gpu.endorsement_fetcher import GpuServices
    from attestkit.gpu.evidence import GpuEvidence
    from attestkit.gpu.roots import GpuRoots
    from attestkit.simulated_roots import SimulatedRoots

MAX_JSON: Final = 32 << 20
"""Maximum size of the JSON in bytes."""

MAX_RIMS: Final = 128
"""Maximum number of RIMs: two of each of 64 devices."""

MAX_BUNDLES: Final = 16
"""Maximum number of answers of the attestation service: one for each architecture suffices."""

_SUBJECT: Final = "GPU endorsements"
_FORMAT: Final = "attestkit GPU endorsements"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class GpuEndorsements:
    """Endorsements of GPU evidence, not verified.

    Attributes:
        rims: RIMs (XML) by their identifiers, at most 128 of at most 512 KiB each.
        ocsp: OCSP answers in DER, at most 512 of at most 16 KiB each.
        jwks: Keys of NVIDIA's attestation service, a JWK set (JSON) that was fetched over TLS; at
            most 256 KiB; None without. They have no signature, so their source could sign tokens.
        nras: Answers of this service: detached EAT bundles (JSON), at most 16 of at most 1 MiB
            each.
    """

    rims: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    ocsp: tuple[bytes, ...] = field(default=(), repr=False)
    jwks: bytes | None = field(default=None, repr=False)
    nras: tuple[bytes, ...] = field(default=(), repr=False)
    # Of certificates, by the OCSP answers; for a verification.
    ocsp_statuses: KeptStatuses = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check numbers and sizes.

        Raises:
            CollateralError: If a field has too many items, an item is empty or too large, or an
                identifier of a RIM is not valid.
        """
        object.__setattr__(self, "rims", dict(self.rims))
        object.__setattr__(self, "ocsp", tuple(self.ocsp))
        object.__setattr__(self, "nras", tuple(self.nras))
        for identifier in self.rims:
            if not IDENTIFIER.fullmatch(identifier):
                raise _bad(f"RIM: invalid identifier: {shown(identifier)}", "malformed")
        for what, found, most, largest in (
            ("RIM", self.rims, MAX_RIMS, MAX_RIM),
            ("OCSP answer", dict(enumerate(self.ocsp)), MAX_ANSWERS, MAX_ANSWER),
            ("NRAS answer", dict(enumerate(self.nras)), MAX_BUNDLES, MAX_BUNDLE),
        ):
            if len(found) > most:
                raise _bad(f"{len(found)} {what}s, at most {most}", "too_large")
            for name, data in found.items():
                _check_size(f"{what} {name}", data, largest)
        if self.jwks is not None:
            _check_size("keys", self.jwks, MAX_JWKS)
        object.__setattr__(self, "ocsp_statuses", KeptStatuses(self.ocsp))

    @classmethod
    def from_json(cls, data: bytes | str) -> "GpuEndorsements":
        """Decode `data`, the JSON of `to_json`.

        Raises:
            CollateralError: If the JSON is malformed, over 32 MiB, not of this format and version,
                has an unknown member, or exceeds a limit of this class.
        """
        if len(data) > MAX_JSON:
            raise _bad(f"{len(data)} bytes, at most {MAX_JSON}", "too_large")
        try:
            found = decode_typed(data, _Document, limit=MAX_JSON)
        except ConfigError as error:
            raise _bad(str(error), "malformed") from error
        return cls(found.rims, found.ocsp, found.jwks, found.nras)

    def to_json(self) -> bytes:
        """Return JSON for `from_json`: name and version of the format, and the fields in base64."""
        rims = dict(sorted(self.rims.items()))
        found = _Document(_FORMAT, _VERSION, rims, self.ocsp, self.jwks, self.nras)
        return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "GpuEndorsements":
        """Read the file `path` with the JSON of `to_json`.

        Raises:
            CollateralError: If the file cannot be read, or `from_json` rejects its content. The
                message names the file.
        """
        return load_document(path, MAX_JSON, cls.from_json, CollateralError)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON of `to_json` to the file `path`, replacing it atomically.

        Raises:
            CollateralError: If the file cannot be written.
        """
        # Endorsements are public, so the file is readable by all.
        save_document(path, self.to_json(), CollateralError, mode=0o644)

    @classmethod
    def fetch(
        cls,
        evidence: "GpuEvidence",
        services: "GpuServices | None" = None,
        *,
        now: datetime,
        roots: "GpuRoots | SimulatedRoots | None" = None,
    ) -> "GpuEndorsements":
        """Fetch RIMs and OCSP answers for evidence.

        Device chain and signature of each report are verified before the versions in it are used.
        RIMs and answers are not verified here. One that several devices need is fetched once.

        Args:
            evidence: Evidence of the devices.
            services: Where to fetch from; None is NVIDIA's services.
            now: Time of the verification of the device chains, aware.
            roots: Trusted roots, or those of a simulated machine; None is NVIDIA's.

        Raises:
            GpuEvidenceError: If a report or a chain is malformed or not valid (`format`,
                `device_chain`, `report_signature`).
            CollateralError: If a RIM does not exist (`missing`), or a service cannot be reached or
                returns an error or an invalid answer.
            UsageError: If `services` has both `rim_key` and `getter`, or an invalid key or proxy.
        """
        from attestkit.gpu.endorsement_fetcher import fetch_parts  # lazy: only to fetch

        rims, ocsp = fetch_parts(evidence, services, now, roots)
        return cls(rims, ocsp)

    def fetch_tokens(
        self,
        evidence: "GpuEvidence",
        nonce: bytes,
        services: "GpuServices | None" = None,
        *,
        allow_hold: bool = False,
    ) -> "GpuEndorsements":
        """Have NVIDIA's attestation service verify evidence; return a copy with tokens and keys.

        Nothing is verified here. The service receives the evidence, once for each architecture.

        Args:
            evidence: Evidence of the devices.
            nonce: The nonce of all reports, 32 bytes.
            services: Service to send the evidence to; None is NVIDIA's.
            allow_hold: Whether the service accepts certificates on hold.

        Raises:
            FormatError: If a device chain is malformed.
            UsageError: If the nonce does not have 32 bytes, the URL is neither https nor http of
                this machine (127.0.0.1, ::1), or `services` has an invalid key, version or proxy.
            CollateralError: If the service cannot be reached, or returns an error or an invalid
                answer.
        """
        from attestkit.gpu.endorsement_fetcher import fetch_answers  # lazy: only to fetch

        nras, jwks = fetch_answers(evidence, nonce, services, allow_hold=allow_hold)
        return GpuEndorsements(self.rims, self.ocsp, jwks, nras)

    def __repr__(self) -> str:
        keys = "no keys" if self.jwks is None else "with keys"
        return (
            f"<GpuEndorsements, {len(self.rims)} RIMs, {len(self.ocsp)} OCSP answers, "
            f"{len(self.nras)} NRAS answers, {keys}>"
        )


class _Document(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The JSON of endorsements, with bytes in base64."""

    format: Literal["attestkit GPU endorsements"]
    version: Literal[1]
    rims: dict[str, bytes] = {}
    ocsp: tuple[bytes, ...] = ()
    jwks: bytes | None = None
    nras: tuple[bytes, ...] = ()


def _check_size(what: str, data: bytes, most: int) -> None:
    if not data:
        raise _bad(f"{what}: must not be empty", "missing")
    if len(data) > most:
        raise _bad(f"{what}: {len(data)} bytes, at most {most}", "too_large")


def _bad(problem: str, reason: CollateralReason) -> CollateralError:
    return CollateralError(f"{_SUBJECT}: {problem}", reason=reason)
