"""Configuration of the simulated platform and its endorsements, with default values.

A `Scenario` is pure data without a seed, so it applies to every simulated platform. Keys and
revoked certificates can be given as labels of the PKI's key derivation: `"tcb-signing"`,
`"platform/0/pck-leaf"`, or any other string for an unrelated key.
"""

from datetime import datetime, timedelta, timezone
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import msgspec

from attestkit._argument_checks import wrong_type
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.images.os_image import ImageConfig
from attestkit.backends.simulator.platforms import PLATFORMS
from attestkit.errors import UsageError

SnpProduct: TypeAlias = Literal["Milan", "Genoa", "Turin"]
SnpSigningKey: TypeAlias = Literal["VCEK", "VLEK"]

_T = TypeVar("_T")
_INTEL_QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

# Range of times in certificates and CRLs (RFC 5280), as datetime and in Unix time.
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
_SNP_CHOICES: Final = {"product": get_args(SnpProduct), "signing_key": get_args(SnpSigningKey)}


def value_or(value: _T | None, default: _T) -> _T:
    """Return `value`, or `default` if it is None."""
    return default if value is None else value


def _check_sizes(config: "PkiConfig | QuoteConfig | SnpConfig") -> None:
    """Check the fields with a fixed number of bytes or bits; optional fields may be None."""
    for name, default in zip(config.__struct_fields__, config.__struct_defaults__, strict=True):
        value = getattr(config, name)
        if value is None and default is None:
            continue
        if name in _BYTES:
            check_bytes(name, value, _BYTES[name])
        if name in _BITS:
            _check_range(name, value, (1 << _BITS[name]) - 1)


def _check_range(name: str, value: object, highest: int, lowest: int = 0) -> None:
    if not isinstance(value, int):
        raise UsageError(f"{name}: must be an integer, not {value!r}", reason="wrong_type")
    if not lowest <= value <= highest:
        text = f"{name}: must be {lowest} to {highest}, not {value}"
        raise UsageError(text, reason="out_of_range")


def _check_validity(config: "PkiConfig | SnpConfig", own_end: str, last: datetime) -> None:
    """Raise UsageError if a time of certificates is no aware datetime, or out of range or order.

    Args:
        config: Configuration with `not_before` and `not_after`.
        own_end: Name of the optional field with the end of one kind of certificate.
        last: Latest time allowed.
    """
    for name in ("not_before", "not_after", own_end):
        moment = getattr(config, name)
        if moment is None and name == own_end:
            continue
        # A datetime is aware if it has an offset; a tzinfo alone is not sufficient.
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            message = f"{name}: must be a datetime with a time zone, not {ascii(moment)[:80]}"
            raise UsageError(message, reason="wrong_type")
        if not _FIRST <= moment <= last:
            raise UsageError(
                f"{name}: must be in 1950 to {last.year}, not {moment}", reason="out_of_range"
            )
        if moment < config.not_before:
            raise UsageError(f"{name}: must not be before not_before", reason="conflict")


def _check_update(name: str, moment: object) -> None:
    """Raise UsageError if `moment`, the field `name` of collateral, is an invalid Unix time.

    None is valid, and for the field "next_update" also a timedelta.
    """
    if moment is not None and not (name == "next_update" and isinstance(moment, timedelta)):
        _check_range(name, moment, _LAST_SECOND, _FIRST_SECOND)


class PkiConfig(msgspec.Struct, frozen=True):
    """Content of the certificates, and identity of the quoting enclave.

    The root certificate depends only on the seed, the CRL base URL and the validity.

    Raises:
        UsageError: If a value has the wrong type or size, or is out of range, or a validity ends
            before it begins.
    """

    # Part of the certificates, not the address of a service.
    crl_base_url: str = "https://pcs.attestkit.invalid"
    # No hexadecimal letters: go-tdx-guest 0.3.1 compares FMSPC and PCEID case-sensitively.
    fmspc: bytes = bytes.fromhex("507757000000")  # 6 bytes
    pceid: bytes = bytes(2)  # 2 bytes
    cpusvn: bytes = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)  # 16 bytes; the TCB components too
    pcesvn: int = 13  # 0..32767: some verifiers reject a third octet
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
        if not isinstance(url, str):
            raise wrong_type("crl_base_url", "a str", url)
        if not url.isascii() or not url.isprintable():
            message = f"crl_base_url: must be printable ASCII, not {ascii(url)[:80]}"
            raise UsageError(message, reason="encoding")


class TcbLevel(NamedTuple):
    """A TCB level of a TDX module or a quoting enclave: its ISVSVN, date, status, advisory ids."""

    isvsvn: int
    date: str  # YYYY-MM-DDTHH:MM:SSZ
    status: str  # UpToDate, OutOfDate, ...
    advisories: tuple[str, ...] = ()


class TcbInfoConfig(msgspec.Struct, frozen=True):
    """Content of the TCB info; a field that is None follows the PKI's configuration or the clock.

    Raises:
        UsageError: If a time has another type than stated, or is outside 1950 to 9999.
    """

    id: str = "TDX"
    version: int = 3
    tdx: bool = True  # has TDX modules and components; TCB info of SGX has none
    by_platform: bool = False  # signed by the platform's PCK key, with its chain
    issue: int | None = None  # Unix seconds
    next_update: int | timedelta | None = None  # Unix seconds, or how long after the issue
    fmspc: bytes | None = None  # 6 bytes
    pceid: bytes | None = None  # 2 bytes
    evaluation_number: int = 18
    status: str = "UpToDate"  # of the first level
    # Of the first level; None: empty if UpToDate, otherwise INTEL-SA-99999.
    advisories: tuple[str, ...] | None = None
    sgx_components: bytes | None = None  # 16 bytes, first level; the second has one less
    tdx_components: bytes = bytes([5, 0, 3]) + bytes(13)  # 16 bytes, first level
    pcesvn: int | None = None  # first level
    module_id: str = "TDX_01"
    module_mrsigner: bytes = bytes(48)
    module_levels: tuple[TcbLevel, ...] = (
        TcbLevel(6, "2024-11-13T00:00:00Z", "UpToDate"),
        TcbLevel(4, "2024-03-13T00:00:00Z", "OutOfDate", ("INTEL-SA-99998",)),
    )

    def __post_init__(self) -> None:
        _check_update("issue", self.issue)
        _check_update("next_update", self.next_update)


class QeIdentityConfig(msgspec.Struct, frozen=True):
    """Content of the QE identity; a field that is None follows the PkiConfig or the clock.

    Raises:
        UsageError: If a time has another type than stated, or is outside 1950 to 9999.
    """

    id: str = "TD_QE"
    version: int = 2
    issue: int | None = None  # Unix seconds
    next_update: int | timedelta | None = None  # Unix seconds, or how long after the issue
    evaluation_number: int = 18
    miscselect: int = 0  # 32 bits; the mask is all ones
    # 16 bytes, already masked with FBFFFFFFFFFFFFFF0000000000000000.
    attributes: bytes = bytes([0x11]) + bytes(15)
    mrsigner: bytes | None = None  # 32 bytes
    isvprodid: int | None = None
    # None: the platform's own ISVSVN is UpToDate, 2 is OutOfDate.
    levels: tuple[TcbLevel, ...] | None = None

    def __post_init__(self) -> None:
        _check_update("issue", self.issue)
        _check_update("next_update", self.next_update)


class CrlConfig(msgspec.Struct, frozen=True):
    """Content of a CRL; a field that is None follows the clock, or is the usual one.

    Raises:
        UsageError: If a value has the wrong type, a number is invalid in X.509, or a time is
            outside 1950 to 9999.
    """

    # Serial numbers, positive with at most 20 octets, or labels of certificates of the PKI.
    revoked: tuple[int | str, ...] = ()
    this_update: int | None = None  # Unix seconds
    next_update: int | timedelta | None = None  # Unix seconds, or how long after the issue
    number: int | None = None  # None: thisUpdate in days
    key: P256Key | str | None = None  # the signing key; None: that of the CRL's issuer

    def __post_init__(self) -> None:
        revoked: object = self.revoked
        if not isinstance(revoked, tuple):  # a str would be iterated by characters
            text = "revoked: must be a tuple of serial numbers and labels"
            raise UsageError(text, reason="wrong_type")
        for one in revoked:
            if not isinstance(one, str):
                _check_range("revoked", one, _LONGEST_SERIAL, 1)
        if self.number is not None:
            _check_range("number", self.number, _LONGEST_SERIAL)
        _check_update("this_update", self.this_update)
        _check_update("next_update", self.next_update)


class CollateralConfig(msgspec.Struct, frozen=True):
    """Content of the signed parts of Intel's collateral: TCB info, QE identity and two CRLs."""

    tcb_info: TcbInfoConfig = TcbInfoConfig()
    qe_identity: QeIdentityConfig = QeIdentityConfig()
    root_crl: CrlConfig = CrlConfig()
    pck_crl: CrlConfig = CrlConfig()
    pck_crl_is_roots: bool = False  # the root's CRL replaces the PCK CA's
    # Age of all parts at the requested time; negative: issued later.
    age: timedelta = timedelta()
    # Alterations after signing: part, text, and replacement of its first occurrence.
    altered: tuple[tuple[Literal["tcb_info", "qe_identity"], str, str], ...] = ()


class QuoteConfig(msgspec.Struct, frozen=True):
    """Content of quotes and QE report; a field that is None follows the PKI or the platform.

    Raises:
        UsageError: If a number or bytes have the wrong type or size, or are out of range.
    """

    # Header.
    version: int | None = None  # the field; None: the version of the layout
    attestation_key_type: int = 2  # 16 bits; 2 is ECDSA P-256
    tee_type: int = 0x81  # 32 bits
    reserved: bytes = bytes(4)
    vendor_id: bytes = _INTEL_QE_VENDOR_ID  # 16 bytes
    user_data: bytes | None = None  # 20 bytes; None: the platform's QE id and zeros
    body_type: int | None = None  # version 5, 16 bits
    body_size: int | None = None  # version 5, 32 bits
    # Keys, or their labels.
    attestation_key: P256Key | str | None = None  # signs the quote
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
    # Certification data: type 5, PEM of leaf, CA and root with a final NUL; or type 2 or 3 for a
    # PCCS: the PPID encrypted with RSA-2048 or RSA-3072, CPUSVN, PCESVN and PCEID.
    certification_type: int = 5  # 16 bits
    certification: bytes | None = None  # None: the platform's own
    padding: int = 0  # zero bytes after the quote, as from hosts with a buffer of fixed size
    # After signing.
    altered: tuple[str, ...] = ()  # fields of the body whose first bit is flipped
    cut: int = 0  # bytes missing at the end

    def __post_init__(self) -> None:
        _check_sizes(self)
        if not isinstance(self.qe_auth_data, bytes):
            raise wrong_type("qe_auth_data", "bytes", self.qe_auth_data)
        _check_range("size of qe_auth_data", len(self.qe_auth_data), 0xFFFF)
        _check_range("padding", self.padding, 1 << 20)
        _check_range("cut", self.cut, 1 << 12)


class SnpConfig(msgspec.Struct, frozen=True):
    """Content of an SEV-SNP guest's report, and of the certificate of the key that signs it.

    Raises:
        UsageError: If a value is unknown, has the wrong type or size, or is out of range, or a
            validity ends before it begins.
    """

    product: SnpProduct = "Genoa"
    report_version: int = 3  # 2 to 5
    signing_key: SnpSigningKey = "VCEK"  # of the chip, or of a cloud provider
    policy: int = 0x30000  # 64 bits, guest policy: SMT allowed, debugging forbidden
    snp_tcb: bytes | None = None  # 8 bytes; None: a current one of the product
    not_before: datetime = datetime(2020, 1, 1, tzinfo=timezone.utc)
    not_after: datetime = datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    vcek_not_after: datetime | None = None  # of the leaf, VCEK or VLEK; None: `not_after`
    # Content of the leaf; None: the chip and the TCB of the report.
    vcek_chip: str | None = None  # the label of another chip; not in a VLEK
    vcek_tcb: bytes | None = None  # 8 bytes
    report_key: str | None = None  # label of the key that signs reports; None: the chip's

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_range("report_version", self.report_version, 5, 2)
        _check_validity(self, "vcek_not_after", _LAST)
        for name, allowed in _SNP_CHOICES.items():
            if getattr(self, name) not in allowed:
                text = f"{name}: must be {' or '.join(allowed)}, not {getattr(self, name)!r}"
                raise UsageError(text, reason="wrong_value")


class CloudConfig(msgspec.Struct, frozen=True):
    """Properties of a guest behind a vTPM; those that its platform does not have are ignored.

    Raises:
        UsageError: If a value is unknown or out of range.
    """

    # Azure: the paravisor's claims and report.
    secure_boot: bool = True
    console_enabled: bool = False
    bound: bool = True  # the hardware report is over the runtime data
    foreign_ak: bool = False  # runtime data or certificate have the key of another TPM
    vmpl: int = 0  # 0 to 3, of the SEV-SNP report
    # All clouds.
    stale_nonce: bool = False  # evidence over other report data than requested
    bank: Literal["sha256", "sha384"] = "sha256"  # that the TPM's quote selects
    loader: Literal["stub", "grub"] = "stub"  # of the kernel; "grub": after shim, PCRs 8 and 14
    intermediate: bool = False  # Google: an intermediate CA issues the key's certificate
    relayed: bool = False  # the hardware's evidence is of another machine
    document_age: timedelta = timedelta()  # of a NitroTPM document
    certificate_age: timedelta = timedelta()  # of its certificates, before the document

    def __post_init__(self) -> None:
        _check_range("vmpl", self.vmpl, 3)
        for name, allowed in {"bank": ("sha256", "sha384"), "loader": ("stub", "grub")}.items():
            if getattr(self, name) not in allowed:
                text = f"{name}: must be {' or '.join(allowed)}, not {getattr(self, name)!r}"
                raise UsageError(text, reason="wrong_value")


class Scenario(msgspec.Struct, frozen=True):
    """A simulated platform, and the content of its evidence and endorsements; all data, no seed.

    Raises:
        UsageError: If the platform or the version of quotes is unknown, or the trust anchor is
            neither DER nor a label.
    """

    platform: str = "tdx"  # one of `platforms.PLATFORMS`
    snp: SnpConfig = SnpConfig()  # applies to SEV-SNP, with `platform_pki` and `trust_anchor`
    image: ImageConfig = ImageConfig()  # of a TD
    pki: PkiConfig = PkiConfig()
    collateral: CollateralConfig = CollateralConfig()
    quote: QuoteConfig = QuoteConfig()
    platform_id: str = "0"
    # Overridden fields of `quoting_enclave.TdBody`, except registers and report data.
    body: tuple[tuple[str, bytes], ...] = ()
    quote_version: int | None = None  # 4 or 5; None: chosen by the caller, by default 4
    td10: bool = False  # quotes of version 5 also have a TD 1.0 body
    # Labels of other PKIs, whose seeds are derived from that of this one.
    platform_pki: str | None = None  # PKI of the platform; None: that of the collateral
    # Trust anchor for verifiers: DER, or the label of a PKI; None: the root of the collateral.
    trust_anchor: bytes | str | None = None
    cloud: CloudConfig = CloudConfig()  # of a guest behind a vTPM
    gpu_fault: str | None = None  # of the machine's GPUs, by name: see `gpu.gpu_faults`

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            text = f"platform: must be one of {', '.join(PLATFORMS)}, not {self.platform!r}"
            raise UsageError(text, reason="wrong_value")
        if self.quote_version not in (None, 4, 5):
            text = f"quote_version: must be 4 or 5, not {self.quote_version!r}"
            raise UsageError(text, reason="wrong_value")
        anchor: object = self.trust_anchor
        if anchor is not None and not isinstance(anchor, (bytes, str)):
            expected = "a root certificate (bytes, in DER) or the label of a simulated PKI (str)"
            raise wrong_type("trust_anchor", expected, anchor)
