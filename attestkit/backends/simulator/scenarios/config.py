"""Everything about the simulated platform that can be set: values, and what they are by default.

A `Scenario` is pure data without a seed, so the same one fits every simulated platform. Where a key
or a revoked certificate is wanted, a label of the PKI's own derivation does (`"tcb-signing"`,
`"platform/0/pck-leaf"`, or any other word for a key that nothing else uses).
"""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.errors import UsageError

__all__ = [
    "CollateralConfig",
    "CrlConfig",
    "PkiConfig",
    "QeIdentityConfig",
    "QuoteConfig",
    "Scenario",
    "SnpConfig",
    "TcbInfoConfig",
    "TcbLevel",
    "given",
]

_T = TypeVar("_T")
_INTEL_QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

# The times of certificates and CRLs (RFC 5280), as datetime has them and in Unix seconds.
_FIRST: Final = datetime(1950, 1, 1, tzinfo=timezone.utc)
_LAST: Final = datetime.max.replace(tzinfo=timezone.utc)
_LAST_UTC_TIME: Final = _LAST.replace(year=2049)
_FIRST_SECOND, _LAST_SECOND = -631_152_000, 253_402_300_799
_LONGEST_SERIAL: Final = (1 << 159) - 1  # 20 octets, of serial and CRL numbers

_BYTES: Final = {
    "fmspc": 6,
    "pceid": 2,
    "cpusvn": 16,
    "reserved": 4,
    "vendor_id": 16,
    "user_data": 20,
    "qe_cpusvn": 16,
    "qe_attributes": 16,
    "qe_mrenclave": 32,
    "qe_mrsigner": 32,
    "qe_report_data": 64,
    "snp_tcb": 8,
    "vcek_tcb": 8,
}
_BITS: Final = {
    "pcesvn": 15,
    "version": 16,
    "attestation_key_type": 16,
    "certification_type": 16,
    "tee_type": 32,
    "body_type": 16,
    "body_size": 32,
    "qe_miscselect": 32,
    "qe_isvprodid": 16,
    "qe_isvsvn": 16,
    "policy": 64,
}


def given(value: _T | None, default: _T) -> _T:
    """Return `value` unless it is None: a field that a configuration leaves to others."""
    return default if value is None else value


def _check_sizes(config: "PkiConfig | QuoteConfig | SnpConfig") -> None:
    """Check each field that has a fixed number of bytes or bits, or the None that it began as."""
    for field in fields(config):
        value = getattr(config, field.name)
        if value is None and field.default is None:
            continue
        size, bits = _BYTES.get(field.name), _BITS.get(field.name)
        if size is not None and (not isinstance(value, bytes) or len(value) != size):
            found = len(value) if isinstance(value, bytes) else type(value).__name__
            raise UsageError(f"{field.name} is {size} bytes, not {found}")
        if bits is not None:
            _check_range(field.name, value, (1 << bits) - 1)


def _check_range(name: str, value: object, highest: int, lowest: int = 0) -> None:
    if not isinstance(value, int):
        raise UsageError(f"{name} must be an integer, not a {type(value).__name__}")
    if not lowest <= value <= highest:
        raise UsageError(f"{name} must be in {lowest} to {highest}, not {value}")


def _check_validity(config: "PkiConfig | SnpConfig", own_end: str, last: datetime) -> None:
    """Check the times of certificates, of which one kind may have an end of its own."""
    for name in ("not_before", "not_after", own_end):
        moment = getattr(config, name)
        if moment is None and name == own_end:
            continue
        # Aware is what has an offset, not only a tzinfo.
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise _no_moment(name, last)
        if not _FIRST <= moment <= last:
            raise _no_moment(name, last)
        if moment < config.not_before:
            raise UsageError(f"{name} is before not_before")


def _no_moment(name: str, last: datetime) -> UsageError:
    return UsageError(f"{name} must be an aware datetime in 1950 to {last.year}")


def _check_update(name: str, moment: object) -> None:
    """Check when a part of the collateral is issued or renewed, if that is said in seconds."""
    if moment is not None and not (name == "next_update" and isinstance(moment, timedelta)):
        _check_range(name, moment, _LAST_SECOND, _FIRST_SECOND)


class _Values:
    """Compares, hashes and shows as its fields do; written out, for to generate it takes 2 ms."""

    __slots__ = ()
    # Of a subclass of a subclass `__slots__` would be the new ones only.
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def _values(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self.__dataclass_fields__])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Values) or type(self) is not type(other):
            return False
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = zip(self.__dataclass_fields__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PkiConfig(_Values):
    """What the certificates and the quoting enclave say of the platform.

    The root's bytes depend on the seed, the CRL base URL and the validity alone.

    Raises:
        UsageError: a value has another size, or is outside its range; the text names it.
    """

    # Part of the certificates, never the address a service listens on.
    crl_base_url: str = "https://pcs.attestkit.invalid"
    fmspc: bytes = bytes.fromhex("a77e57000000")  # 6 bytes
    pceid: bytes = bytes(2)  # 2 bytes
    cpusvn: bytes = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)  # 16 bytes; the TCB components too
    pcesvn: int = 13  # 0..32767: some verifiers refuse a third octet
    sgx_type: int = 1  # 0 standard, 1 scalable, 2 scalable with integrity
    dynamic_platform: bool = False
    cached_keys: bool = False
    smt_enabled: bool = False
    not_before: datetime = datetime(2020, 1, 1, tzinfo=timezone.utc)
    not_after: datetime = datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    pck_not_after: datetime | None = None  # of the PCK leaves; None: `not_after`
    qe_mrsigner: bytes = sha256(b"attestkit simulated TD QE signer")
    qe_mrenclave: bytes = sha256(b"attestkit simulated TD QE enclave")
    qe_isvprodid: int = 2  # 16 bits
    qe_isvsvn: int = 4  # 16 bits
    qe_attributes: bytes = bytes.fromhex("1500000000000000e700000000000000")  # 16 bytes
    qe_miscselect: int = 0  # 32 bits

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_range("sgx_type", self.sgx_type, 2)
        _check_validity(self, "pck_not_after", _LAST_UTC_TIME)
        url: object = self.crl_base_url
        if not isinstance(url, str) or not url.isascii() or not url.isprintable():
            raise UsageError("crl_base_url must be printable ASCII")


class TcbLevel(NamedTuple):
    """One level of a TDX module or a quoting enclave."""

    isvsvn: int
    date: str  # YYYY-MM-DDTHH:MM:SSZ
    status: str  # Intel's word: UpToDate, OutOfDate, ...
    advisories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TcbInfoConfig(_Values):
    """The TCB info's body; None stands for what the PKI's configuration or the clock says.

    Raises:
        UsageError: a time is none, or outside 1950 to 9999; the text names it.
    """

    id: str = "TDX"
    version: int = 3
    by_platform: bool = False  # signed by the platform's PCK key, with the chain of that
    issue: int | None = None  # Unix seconds
    next_update: int | timedelta | None = None  # Unix seconds, or how long after the issue
    fmspc: bytes | None = None  # 6 bytes
    pceid: bytes | None = None  # 2 bytes
    evaluation_number: int = 18
    status: str = "UpToDate"  # of the first level
    # Of the first level; None: none when UpToDate, else INTEL-SA-99999.
    advisories: tuple[str, ...] | None = None
    sgx_components: bytes | None = None  # 16 bytes, first level; the second has one less
    tdx_components: bytes = bytes([5, 0, 3]) + bytes(13)  # 16 bytes, what the first level requires
    pcesvn: int | None = None  # what the first level requires
    module_id: str = "TDX_01"
    module_mrsigner: bytes = bytes(48)
    module_levels: tuple[TcbLevel, ...] = (
        TcbLevel(6, "2024-11-13T00:00:00Z", "UpToDate"),
        TcbLevel(4, "2024-03-13T00:00:00Z", "OutOfDate", ("INTEL-SA-99998",)),
    )

    def __post_init__(self) -> None:
        _check_update("issue", self.issue)
        _check_update("next_update", self.next_update)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QeIdentityConfig(_Values):
    """The QE identity's body; None stands for what the PKI's configuration or the clock says.

    Raises:
        UsageError: a time is none, or outside 1950 to 9999; the text names it.
    """

    id: str = "TD_QE"
    version: int = 2
    issue: int | None = None  # Unix seconds
    next_update: int | timedelta | None = None  # Unix seconds, or how long after the issue
    evaluation_number: int = 18
    miscselect: int = 0  # 32 bits; the mask is all ones
    # 16 bytes, masked already with FBFFFFFFFFFFFFFF0000000000000000.
    attributes: bytes = bytes([0x11]) + bytes(15)
    mrsigner: bytes | None = None  # 32 bytes
    isvprodid: int | None = None
    # None: the platform's own ISVSVN is UpToDate, 2 is OutOfDate.
    levels: tuple[TcbLevel, ...] | None = None

    def __post_init__(self) -> None:
        _check_update("issue", self.issue)
        _check_update("next_update", self.next_update)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CrlConfig(_Values):
    """One CRL; None stands for what the clock says.

    Raises:
        UsageError: a number is none of X.509's, or a time outside 1950 to 9999; the text names it.
    """

    # Serial numbers, positive and of at most 20 octets, or labels of the PKI's certificates.
    revoked: tuple[int | str, ...] = ()
    this_update: int | None = None  # Unix seconds
    next_update: int | timedelta | None = None  # Unix seconds, or how long after the issue
    number: int | None = None  # None: thisUpdate in days
    key: P256Key | str | None = None  # who signs, or its label; None: the CRL's issuer

    def __post_init__(self) -> None:
        if not isinstance(self.revoked, tuple):  # a label alone would be taken letter by letter
            raise UsageError("revoked must be a tuple of serial numbers and labels")
        for one in self.revoked:
            if not isinstance(one, str):
                _check_range("revoked", one, _LONGEST_SERIAL, 1)
        if self.number is not None:
            _check_range("number", self.number, _LONGEST_SERIAL)
        _check_update("this_update", self.this_update)
        _check_update("next_update", self.next_update)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CollateralConfig(_Values):
    """The four signed parts of the collateral."""

    tcb_info: TcbInfoConfig = TcbInfoConfig()
    qe_identity: QeIdentityConfig = QeIdentityConfig()
    root_crl: CrlConfig = CrlConfig()
    pck_crl: CrlConfig = CrlConfig()
    pck_crl_is_roots: bool = False  # the root's CRL stands in the place of the PCK CA's
    # How long before the time that is asked for all of it was issued; negative: how long after.
    age: timedelta = timedelta()
    # After signing: in the part of that name the first such text is replaced by the other.
    altered: tuple[tuple[Literal["tcb_info", "qe_identity"], str, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuoteConfig(_Values):
    """Quotes and the QE report in them; None stands for what the PKI and the platform say.

    Raises:
        UsageError: a value has another size, or is outside its range; the text names it.
    """

    # Header.
    version: int | None = None  # the field; None: the version whose layout the quote has
    attestation_key_type: int = 2  # 16 bits; 2 is ECDSA P-256
    tee_type: int = 0x81  # 32 bits
    reserved: bytes = bytes(4)
    vendor_id: bytes = _INTEL_QE_VENDOR_ID  # 16 bytes
    user_data: bytes | None = None  # 20 bytes; None: the platform's QE id and zeros
    body_type: int | None = None  # version 5, 16 bits
    body_size: int | None = None  # version 5, 32 bits
    # Keys, or their labels.
    attestation_key: P256Key | str | None = None  # signs the quote and stands in it
    bound_key: P256Key | str | None = None  # hashed into the QE report; None: the attestation key
    pck_key: P256Key | str | None = None  # signs the QE report
    # QE report.
    qe_cpusvn: bytes | None = None  # 16 bytes
    qe_miscselect: int | None = None  # 32 bits
    qe_attributes: bytes | None = None  # 16 bytes
    qe_mrenclave: bytes | None = None  # 32 bytes
    qe_mrsigner: bytes | None = None  # 32 bytes
    qe_isvprodid: int | None = None  # 16 bits
    qe_isvsvn: int | None = None  # 16 bits
    qe_report_data: bytes | None = None  # 64 bytes; None: the binding of key and auth data
    qe_auth_data: bytes = bytes(range(32))  # up to 65535 bytes
    # Certification data: 5, PEM of leaf, CA and root with a closing NUL; or 2 or 3, by which a PCCS
    # knows the platform: its PPID, encrypted with RSA-2048 or RSA-3072, CPUSVN, PCESVN and PCEID.
    certification_type: int = 5  # 16 bits
    certification: bytes | None = None  # None: the platform's own
    padding: int = 0  # zero bytes after the quote, as hosts with a buffer of fixed size leave them
    # After signing.
    altered: tuple[
        str, ...
    ] = ()  # fields of the body: the lowest bit of each first byte is flipped
    cut: int = 0  # bytes that are missing at the end

    def __post_init__(self) -> None:
        _check_sizes(self)
        if not isinstance(self.qe_auth_data, bytes):
            raise UsageError("qe_auth_data must be bytes")
        _check_range("the size of qe_auth_data", len(self.qe_auth_data), 0xFFFF)
        _check_range("padding", self.padding, 1 << 20)
        _check_range("cut", self.cut, 1 << 12)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SnpConfig(_Values):
    """An SEV-SNP guest's report, and the certificate of the key that signs it.

    Raises:
        UsageError: a value has another size, or is outside its range; the text names it.
    """

    policy: int = 0x30000  # 64 bits, of the guest: SMT is allowed, debugging is not
    snp_tcb: bytes = bytes([9, 0, 0, 0, 0, 0, 21, 72])  # 8 bytes, a Genoa's; four SVNs
    not_before: datetime = datetime(2020, 1, 1, tzinfo=timezone.utc)
    not_after: datetime = datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    vcek_not_after: datetime | None = None  # None: `not_after`
    # What the certificate is for; None: the chip and the TCB of the report.
    vcek_chip: str | None = None  # the label of another chip
    vcek_tcb: bytes | None = None  # 8 bytes
    report_key: str | None = None  # the label of the key that signs reports; None: the chip's

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_validity(self, "vcek_not_after", _LAST)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scenario(_Values):
    """One simulated platform with its evidence's and its endorsements' peculiarities.

    Raises:
        UsageError: the platform or the version of the quotes is an unknown one, or the trust
            anchor is neither DER nor a label.
    """

    platform: Literal["tdx", "snp"] = "tdx"
    snp: SnpConfig = SnpConfig()  # all that counts on SEV-SNP, with `maker` and `trust_anchor`
    pki: PkiConfig = PkiConfig()
    collateral: CollateralConfig = CollateralConfig()
    quote: QuoteConfig = QuoteConfig()
    platform_id: str = "0"
    # Fields of a `quoting.TdBody` that it overrides; not the registers, nor the report data.
    body: tuple[tuple[str, bytes], ...] = ()
    quote_version: int | None = None  # 4 or 5; None: as the caller likes, 4 by default
    td10: bool = False  # quotes of version 5 have a TD 1.0 body too
    # Labels of other PKIs, whose seeds are derived from this one's.
    maker: str | None = None  # the platform is one of that PKI; None: of the collateral's
    # The root that verifiers are told to trust: DER, or whose; None: the collateral's.
    trust_anchor: bytes | str | None = None

    def __post_init__(self) -> None:
        if self.platform not in ("tdx", "snp"):
            raise UsageError(f"platform is tdx or snp, not {self.platform!r}")
        if self.quote_version not in (None, 4, 5):
            raise UsageError(f"quote_version is 4 or 5, not {self.quote_version!r}")
        anchor: object = self.trust_anchor
        if anchor is not None and not isinstance(anchor, (bytes, str)):
            raise UsageError("trust_anchor is DER or a label")
