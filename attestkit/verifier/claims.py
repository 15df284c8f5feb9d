"""Claims: the authenticated content of evidence, in one form for all platforms (RFC 9334).

The authenticator of a platform returns `Authenticated`: what the vendor's signatures cover, with
the TCB and, on platforms with a TPM, `VtpmFacts`. `Claims` are the fields that a policy appraises.
Each of them renders itself for JSON, and so for `AttestationResult.to_dict` and for EARs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import Enum
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, cast

from attestkit._outcomes.steps import VerificationStep, skipped
from attestkit.event_log.event import Event

NO_REVOCATION: Final = skipped("revocation", "revocation was not checked: no CRL was consulted")

ANOTHER_ROOT: Final = (
    "for simulated evidence pass the simulator's root as trust anchor, for evidence of hardware "
    "pass none"
)
"""Remedy in the error messages for the reason `untrusted_root`, on any platform."""


class ValueMapping(Mapping[str, Any]):
    """Base class of dataclasses whose fields are also the items of a read-only mapping."""

    __slots__ = ()

    def _values(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(cast("Any", self))}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - values of several types
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __reduce__(self) -> tuple[object, ...]:
        # Half the time of the state of a frozen dataclass, in both processes of a batch.
        return type(self), values_of(type(self))(self)

    def to_dict(self) -> dict[str, object]:
        """Return the items for JSON: bytes in hex, times in ISO 8601, pairs as objects."""
        return {name: _for_json(value) for name, value in self.items()}


@cache
def values_of(kind: type[Any]) -> Callable[[object], tuple[Any, ...]]:
    """Return a function that maps an object of a dataclass to the tuple of its field values.

    Args:
        kind: The dataclass, with two or more fields.
    """
    return attrgetter(*(one.name for one in fields(kind)))


def _for_json(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return dict(value)
    return value.to_dict() if isinstance(value, ValueMapping) else value


class TcbStatus(str, Enum):
    """TCB status of a platform as defined by Intel, best first (PCS API, `tcbStatus`)."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"

    # A status is equal to its value. The hash of Enum is that of its name, and slow.
    __hash__ = str.__hash__

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class CollateralFacts(ValueMapping):
    """Dates, root key and CRL numbers of verified collateral of Intel; usable as a mapping."""

    # Dates, aware, over all verified parts: TCB info, QE identity, both CRLs, and certificates.
    earliest_issue: datetime
    latest_issue: datetime
    earliest_expiration: datetime
    root_key_id: bytes  # 48 bytes: SHA-384 of the trust anchor's key, an uncompressed point
    # CRL numbers, not negative, of any size; Python does not write huge ones in decimal.
    root_crl_number: int = field(repr=False)
    pck_crl_number: int = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with the CRL numbers in hex."""
        numbers = {"root_crl_number": self.root_crl_number, "pck_crl_number": self.pck_crl_number}
        return ValueMapping.to_dict(self) | {name: f"{one:x}" for name, one in numbers.items()}


@dataclass(frozen=True, slots=True)
class IntelPlatform(ValueMapping):
    """Platform of a PCK certificate; its fields are also the items of a mapping.

    The values are from the certificate's SGX extension (OID 1.2.840.113741.1.13.1). FMSPC and flags
    of that extension are fields of `Tcb`.
    """

    ppid: bytes  # 16 bytes, identifies the platform
    pceid: bytes  # 2 bytes
    pcesvn: int  # 0 to 65535
    cpusvn: bytes  # 16 bytes
    component_svns: bytes  # 16 bytes: the SVN of each SGX TCB component
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    instance_id: bytes | None  # 16 bytes; None with the Processor CA


@dataclass(frozen=True, slots=True)
class Tcb(ValueMapping):
    """TCB of a platform; its fields are also the items of a mapping."""

    date: datetime | None = None  # of the platform's level (tcbDate), aware; None if unknown
    qe_date: datetime | None = None  # of the quoting enclave's level
    evaluation_data_number: int | None = None  # the smaller of TCB info's and QE identity's
    fmspc: bytes = b""  # 6 bytes on TDX
    components: tuple[tuple[str, int], ...] = ()  # name and SVN of each part of the firmware
    qe_status: TcbStatus | None = None  # of the quoting enclave alone
    status: TcbStatus | None = None  # None on AWS Nitro, which has none
    # None on other platforms than Intel's.
    platform: IntelPlatform | None = None
    collateral: CollateralFacts | None = None
    # Flags of the PCK certificate; None without it, or with the Processor CA.
    dynamic_platform: bool | None = None  # packages may be added to the platform
    cached_keys: bool | None = None  # Intel's registration service caches the platform's keys
    smt_enabled: bool | None = None  # simultaneous multithreading
    # The other TCB versions of an SEV-SNP report, of which `components` is the reported one.
    current: tuple[tuple[str, int], ...] = ()
    committed: tuple[tuple[str, int], ...] = ()
    launch: tuple[tuple[str, int], ...] = ()
    product: str = ""  # of AMD: Milan, Genoa, Turin or Venice

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, without the status; null where a platform has no such value."""
        found = ValueMapping.to_dict(self) | {
            "fmspc": self.fmspc.hex() or None,
            "product": self.product or None,
        }
        del found["status"]
        return found


KeyTrust = Literal["hardware_report", "certificate", "listed"]
"""What certifies the attestation key of a TPM.

`hardware_report`: an authentic hardware report contains its hash (Azure). `certificate`: a
certificate under a trusted root. `listed`: only `trusted_aks` of the policy.
"""

Join = Literal["hardware_to_ak", "ak_to_hardware"]
"""Direction in which hardware evidence and TPM are joined.

`hardware_to_ak`: the hardware's evidence contains a hash of the TPM's key. `ak_to_hardware`: the
TPM signed the hardware's evidence.
"""

BANKS: Final = ("sha256", "sha384", "sha512", "sha1")
"""Banks of PCRs in the order in which one is chosen for the registers of the claims."""

PARAVISOR_CLAIMS: Final = ("secure_boot", "console_enabled", "tpm_persisted")
"""Details that rules of a policy compare: `true` or `false`, as the paravisor reports it.

Other details from the `vm-configuration` of an HCL report are named like its members, with
underscores: vm_unique_id, tpm_enabled, root_cert_thumbprint.
"""

GOOGLE_CLAIMS: Final = ("gce_project", "gce_zone", "gce_instance")
"""Details that rules of a policy compare: project id, zone and instance name.

They are those of the extension 1.3.6.1.4.1.11129.2.1.21 of the key's certificate. Other details
from it are gce_project_number, gce_instance_id, gce_security_version and gce_is_production.

A NitroTPM document has module_id and, in hex where present, nonce and public_key, which a program
on the instance chose.
"""


@dataclass(frozen=True, slots=True)
class VtpmFacts(ValueMapping):
    """Verified facts of a TPM's quote; its fields are also the items of a mapping."""

    # DER SubjectPublicKeyInfo; empty where a document has the PCRs, and no key of a TPM (NitroTPM).
    attestation_key: bytes
    key_trust: KeyTrust
    joins: tuple[Join, ...]  # directions that hold; empty without hardware evidence
    pcrs: tuple[tuple[str, int, bytes], ...]  # bank (sha256, ...), index, value; as quoted
    replayed: tuple[tuple[str, int], ...] = ()  # bank and index of PCRs that a log replays to
    # Of the quote; no proof of freshness. None if the platform has no such value.
    clock_ms: int | None = None
    reset_count: int | None = None
    restart_count: int | None = None
    # By name, of paravisor or certificate: see PARAVISOR_CLAIMS and GOOGLE_CLAIMS.
    details: tuple[tuple[str, str], ...] = ()

    def pcr(self, bank: str, index: int) -> bytes | None:
        """Return the value of a PCR; None if it is not quoted.

        Args:
            bank: Name of its bank, such as "sha256".
            index: Its number.
        """
        return next((value for *name, value in self.pcrs if name == [bank, index]), None)

    def registers(self) -> tuple[tuple[str, bytes], ...]:
        """Return name (pcr0, ...) and value of the PCRs in the first quoted bank of `BANKS`."""
        return _registers(self.pcrs)

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex."""
        return {
            "attestation_key": self.attestation_key.hex(),
            "key_trust": self.key_trust,
            "joins": list(self.joins),
            "pcrs": {f"{bank}:{index}": value.hex() for bank, index, value in self.pcrs},
            "replayed": [f"{bank}:{index}" for bank, index in self.replayed],
            "clock_ms": self.clock_ms,
            "reset_count": self.reset_count,
            "restart_count": self.restart_count,
            "details": dict(self.details),
        }


@lru_cache(maxsize=64)  # a machine's PCRs seldom change after its boot
def _registers(pcrs: tuple[tuple[str, int, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    quoted = {bank for bank, _, _ in pcrs}
    chosen = next((bank for bank in BANKS if bank in quoted), None)
    found = sorted((index, value) for bank, index, value in pcrs if bank == chosen)
    return tuple((f"pcr{index}", value) for index, value in found)


class Authenticated(NamedTuple):
    """Vendor-signed content of evidence, before appraisal by a policy."""

    report_data: bytes  # as signed: 64 bytes; a Nitro document's user data has up to 512
    steps: tuple[VerificationStep, ...] = ()
    tcb: Tcb = Tcb()
    chain: tuple[bytes, ...] = ()  # DER of the certificates, leaf first, the anchor last
    advisory_ids: tuple[str, ...] = ()
    device: bytes = b""  # device identifier: PPID, or Nitro's module id; empty on SEV-SNP
    vtpm: VtpmFacts | None = None  # None on platforms without a TPM
    # Attributes of the claims that certificates prove, beside those of quote or report.
    attributes: tuple[tuple[str, bytes], ...] = ()
    simulated: bool = False  # a certificate names attestkit's simulator

    @property
    def status(self) -> TcbStatus | None:
        """TCB status; None on platforms without one."""
        return self.tcb.status


_PLAIN_CLAIMS: Final = (
    "platform",
    "report_data",
    "os_image_hash",
    "measurement_version",
    "events",
)


@dataclass(frozen=True, slots=True)
class Claims(ValueMapping):
    """Authenticated fields of evidence.

    As a mapping, it has `platform`, `report_data`, `os_image_hash`, `measurement_version`,
    `events`, and each register and attribute by the name that its platform uses: `claims["rtmr3"]`.
    """

    platform: str  # dstack-tdx, hcl-snp, tpm ...; sgx for a bare SGX quote
    report_data: bytes  # as signed, 64 bytes; user data of a Nitro document
    registers: tuple[tuple[str, bytes], ...]  # mrtd, rtmr0 ...; measurement, ...; pcr0, ...
    # td_attributes, xfam, ...; as in the evidence. Of SEV-SNP: see docs/policy.md.
    attributes: tuple[tuple[str, bytes], ...]
    events: tuple[Event, ...]  # runtime events that replay; empty if the platform measures none
    event_registers: tuple[int, ...]  # RTMRs that the log replays to
    os_image_hash: bytes  # 32 bytes if the registers are those of the image, else empty
    has_mr_config: bool = False  # the evidence has the document of MR_CONFIG_ID version 3
    # Version of the measurement document of a TD's verified image, 3 or 4; None without one.
    measurement_version: int | None = None
    # The ACPI tables of a TD are those that QEMU makes for the VM's shape; see `Verifier`.
    acpi_tables_verified: bool = False
    # Metadata of the verified image, if its files are at hand.
    os_image_version: str | None = None
    os_image_is_dev: bool | None = None
    vtpm: VtpmFacts | None = None  # None on platforms without a TPM

    def _values(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in _PLAIN_CLAIMS}
        return dict((*self.registers, *self.attributes), **named)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - values of several types
        # Without a dictionary of all values, which takes longer than a look-up.
        for one, value in self.attributes:
            if one == name:
                return value
        for one, value in self.registers:
            if one == name:
                return value
        if name in _PLAIN_CLAIMS:
            return getattr(self, name)
        raise KeyError(name)

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON: bytes in hex, unknown values as null."""
        return {
            "platform": self.platform,
            "report_data": self.report_data.hex(),
            "registers": {name: value.hex() for name, value in self.registers},
            "attributes": {name: value.hex() for name, value in self.attributes},
            "events": [
                {"name": event.name, "payload": event.payload.hex(), "digest": event.digest.hex()}
                for event in self.events
            ],
            "os_image_hash": self.os_image_hash.hex() or None,
            "os_image_version": self.os_image_version,
            "os_image_is_dev": self.os_image_is_dev,
            "acpi_tables_verified": self.acpi_tables_verified,
            "measurement_version": self.measurement_version,
            "vtpm": None if self.vtpm is None else self.vtpm.to_dict(),
        }

    def __reduce__(self) -> tuple[object, ...]:
        # Plain tuples of the events, which pickle in less time.
        values = values_of(Claims)(self)
        return _restore_claims, (*values[:4], tuple(map(tuple, self.events)), *values[5:])


def _restore_claims(*values: Any) -> Claims:
    """Return claims from the values that `Claims.__reduce__` pickles."""
    found = [*values]
    found[4] = tuple([tuple.__new__(Event, event) for event in values[4]])
    return Claims(*found)
