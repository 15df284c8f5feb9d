"""TCB of a platform: its status, firmware versions, and the collateral that they come from."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from attestkit.verifier.value_mapping import ValueMapping


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
    """Verified collateral of an Intel platform; its fields are also the items of a mapping."""

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
        return {
            "earliest_issue": self.earliest_issue.isoformat(),
            "latest_issue": self.latest_issue.isoformat(),
            "earliest_expiration": self.earliest_expiration.isoformat(),
            "root_key_id": self.root_key_id.hex(),
            "root_crl_number": f"{self.root_crl_number:x}",
            "pck_crl_number": f"{self.pck_crl_number:x}",
        }


@dataclass(frozen=True, slots=True)
class IntelPlatform(ValueMapping):
    """Platform of a PCK certificate; its fields are also the items of a mapping.

    They are those of the certificate's SGX extension (OID 1.2.840.113741.1.13.1). FMSPC and flags
    are fields of `Tcb`.
    """

    ppid: bytes  # 16 bytes, identifies the platform
    pceid: bytes  # 2 bytes
    pcesvn: int  # 0 to 65535
    cpusvn: bytes  # 16 bytes
    component_svns: bytes  # 16 bytes: the SVN of each SGX TCB component
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    instance_id: bytes | None  # 16 bytes; None with the Processor CA

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex."""
        return {
            name: value.hex() if isinstance(value, bytes) else value for name, value in self.items()
        }


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
