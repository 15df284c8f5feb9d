"""Simulated quoting enclaves: signed quotes of TDX, versions 4 and 5, and of SGX, version 3.

Layouts: Intel's "TDX DCAP Quoting Library API", A.3 and A.4, and "SGX ECDSA Quote Library API",
A.4. Numbers are little-endian; the halves of signatures and keys are big-endian.
"""

import struct
from itertools import accumulate
from typing import Final, NamedTuple

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256, sha384
from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki, SimulatedPlatform
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    PkiConfig,
    QeIdentityConfig,
    QuoteConfig,
    TcbInfoConfig,
    value_or,
)
from attestkit.errors import UsageError

_TCB_SVN: Final = bytes([7, 1, 3]) + bytes(13)
_MR_SEAM: Final = sha384(b"attestkit simulated TDX module")
_HEADER: Final = struct.Struct("<HHI4s16s20s")  # 48 bytes
_BODY_HEAD: Final = struct.Struct("<HI")  # version 5: type and size
_BODY_TYPES: Final = {(4, 584): 0, (5, 584): 2, (5, 648): 3}  # by version and size of the body
ENCLAVE_REPORT: Final = struct.Struct("<16sI28x16s32s32x32s96xHH60x64s")
"""Report of an enclave, 384 bytes; reserved fields, and CONFIGID and related fields, are zero."""
CERTIFICATION: Final = struct.Struct("<HI")
"""Head of certification data: type and size."""
_QE_REPORT: Final = 6  # a type of certification data
_ENCRYPTED_PPID: Final = {2: 256, 3: 384}  # bytes, by the type of certification data
SIGNATURE_SIZE: Final = 64
"""Bytes of a signature: r then s."""


class TdBody(NamedTuple):
    """The fields of a TD body; the defaults are those of an up-to-date TD."""

    tee_tcb_svn: bytes = _TCB_SVN  # 16 bytes: module ISVSVN, module version, loader SVN, zeros
    mr_seam: bytes = _MR_SEAM  # 48 bytes
    mr_signer_seam: bytes = bytes(48)
    seam_attributes: bytes = bytes(8)
    td_attributes: bytes = bytes.fromhex("0000001000000000")  # 8 bytes: SEPT_VE_DISABLE
    xfam: bytes = bytes.fromhex("e702060000000000")  # 8 bytes
    mrtd: bytes = bytes(48)
    mr_config_id: bytes = bytes(48)
    mr_owner: bytes = bytes(48)
    mr_owner_config: bytes = bytes(48)
    rtmr0: bytes = bytes(48)
    rtmr1: bytes = bytes(48)
    rtmr2: bytes = bytes(48)
    rtmr3: bytes = bytes(48)
    report_data: bytes = bytes(64)
    tee_tcb_svn2: bytes = _TCB_SVN  # 16 bytes, TD 1.5 only
    mr_service_td: bytes = bytes(48)  # TD 1.5 only

    def td10(self) -> bytes:
        """Return the TD 1.0 body, 584 bytes; UsageError if a field has the wrong size."""
        return self._join(15)

    def td15(self) -> bytes:
        """Return the TD 1.5 body, 648 bytes; UsageError if a field has the wrong size."""
        return self._join(17)

    def _join(self, count: int) -> bytes:
        values = self[:count]
        if tuple(map(len, values)) != _SIZES[:count]:
            for name, value, size in zip(self._fields, values, _SIZES, strict=False):
                check_bytes(name, value, size)
        return b"".join(values)


_SIZES: Final = tuple(map(len, TdBody()))
_OFFSETS: Final = dict(zip(TdBody._fields, accumulate(_SIZES, initial=0), strict=False))


class _Signer:
    """The attestation key of a quoting enclave, and the data after the signature in its quotes.

    QE report and certification data are created once, so a quote takes one P-256 signature.
    """

    def __init__(self, key: P256Key, certified: bytes, padding: int) -> None:
        auth = key.public_point + certified
        self._key = key
        self._auth_size = struct.pack("<I", SIGNATURE_SIZE + len(auth))
        self._tail = auth + bytes(padding)

    def sign(self, signed: bytes) -> bytes:
        """Return a quote: `signed`, which is header and body, its signature, and the rest."""
        return b"".join((signed, self._auth_size, self._key.sign(signed), self._tail))


class QuotingEnclave:
    """The quoting enclave of a platform. Immutable, and so thread-safe."""

    def __init__(
        self, pki: SimulatedPki, platform_id: str = "0", *, config: QuoteConfig | None = None
    ) -> None:
        """Create the QE report.

        Args:
            pki: The issuer of the platform's certificate.
            platform_id: ASCII without a slash.
            config: Content of the quotes; None: that for an up-to-date platform.

        Raises:
            UsageError: If the platform id is invalid, or `config` alters an unknown field.
        """
        config = config or QuoteConfig()
        if unknown := set(config.altered) - _OFFSETS.keys():
            text = f"altered: a TD body has no field {min(unknown)!r}"
            raise UsageError(text, reason="unknown_name")
        platform = pki.platform(platform_id)
        self.qe_id: bytes = platform.qe_id  # 16 bytes, identifies the platform at a PCCS
        self.pck_der: bytes = platform.pck_der
        key = pki.resolve(config.attestation_key, platform.attestation_key)
        self._quote_heads = _quote_heads(config, platform)
        report = certified_qe_report(config, pki, platform, key)
        head = CERTIFICATION.pack(_QE_REPORT, len(report))
        self._signer = _Signer(key, head + report, config.padding)
        self._alter = bool(config.altered or config.cut)
        self._config = config

    def quote(self, body: bytes, *, version: int = 4) -> bytes:
        """Return a signed quote over `body`.

        Args:
            body: 584 bytes (TD 1.0), or 648 (TD 1.5), which needs version 5.
            version: 4 or 5.

        Raises:
            UsageError: If the version is not 4 or 5, or the body has another size than it allows.
        """
        head = self._quote_heads.get((version, len(body)))
        if head is None:
            text = (
                "version, body: must be 4 with 584 bytes, or 5 with 584 or 648, "
                f"not {version} with {len(body)}"
            )
            raise UsageError(text, reason="wrong_size" if version in (4, 5) else "wrong_value")
        quote = self._signer.sign(head + body)
        return _apply_alterations(self._config, quote, len(head)) if self._alter else quote


def _quote_heads(config: QuoteConfig, platform: SimulatedPlatform) -> dict[tuple[int, int], bytes]:
    """Return the part of a quote before its body, by quote version and body size in bytes."""
    heads = {}
    for version, size in _BODY_TYPES:
        head = _HEADER.pack(
            value_or(config.version, version),
            config.attestation_key_type,
            config.tee_type,
            config.reserved,
            config.vendor_id,
            value_or(config.user_data, platform.qe_id + bytes(4)),
        )
        if version == 5:
            body_type = value_or(config.body_type, _BODY_TYPES[version, size])
            head += _BODY_HEAD.pack(body_type, value_or(config.body_size, size))
        heads[version, size] = head
    return heads


def _apply_alterations(config: QuoteConfig, quote: bytes, body_at: int) -> bytes:
    """Return a signed quote with the configured alterations; its body is at byte `body_at`."""
    raw = bytearray(quote)
    for name in config.altered:
        raw[body_at + _OFFSETS[name]] ^= 1
    return bytes(raw[: len(raw) - config.cut])


def certified_qe_report(
    config: QuoteConfig, pki: SimulatedPki, platform: SimulatedPlatform, key: P256Key
) -> bytes:
    """Return QE report, its signature, QE authentication data and certification data.

    Args:
        config: Content of the quotes.
        pki: The issuer of the platform's certificate.
        platform: The platform, whose PCK signs the QE report.
        key: Attestation key that the QE report certifies.
    """
    bound = pki.resolve(config.bound_key, key)
    report = _qe_report(config, pki.config, bound)
    data = value_or(
        config.certification, _platform_certification(config.certification_type, pki, platform)
    )
    return b"".join(
        (
            report,
            pki.resolve(config.pck_key, platform.pck_key).sign(report),
            struct.pack("<H", len(config.qe_auth_data)),
            config.qe_auth_data,
            CERTIFICATION.pack(config.certification_type, len(data)),
            data,
        )
    )


def _platform_certification(kind: int, pki: SimulatedPki, platform: SimulatedPlatform) -> bytes:
    """Return the certification data of the type `kind`.

    Type 2 and 3 have identifiers for a PCCS, others the platform's chain (PEM, with a NUL byte).
    """
    size = _ENCRYPTED_PPID.get(kind)
    if size is None:
        return platform.pck_chain.encode() + b"\0"
    # Only Intel could decrypt it, so the content is arbitrary.
    blocks = (sha256(platform.qe_id + bytes([index])) for index in range(size // 32))
    config = pki.config
    return b"".join((*blocks, config.cpusvn, config.pcesvn.to_bytes(2, "little"), config.pceid))


def _qe_report(config: QuoteConfig, pki: PkiConfig, bound: P256Key) -> bytes:
    """Return the QE report, 384 bytes, that certifies the attestation key `bound`."""
    binding = sha256(bound.public_point + config.qe_auth_data) + bytes(32)
    return ENCLAVE_REPORT.pack(
        value_or(config.qe_cpusvn, pki.cpusvn),
        value_or(config.qe_miscselect, pki.qe_miscselect),
        value_or(config.qe_attributes, pki.qe_attributes),
        value_or(config.qe_mrenclave, pki.qe_mrenclave),
        value_or(config.qe_mrsigner, pki.qe_mrsigner),
        value_or(config.qe_isvprodid, pki.qe_isvprodid),
        value_or(config.qe_isvsvn, pki.qe_isvsvn),
        value_or(config.qe_report_data, binding),
    )


_SGX_HEADER: Final = struct.Struct("<HHIHH16s20s")  # 48 bytes; QE and PCE SVN are of version 3 only
_VERSION: Final = 3
_QE_MRSIGNER: Final = sha256(b"attestkit simulated QE signer")
_QE_ISVPRODID: Final = 1  # of Intel's quoting enclave; that of TDX has 2

SGX_QUOTES: Final = QuoteConfig(
    tee_type=0,
    qe_mrsigner=_QE_MRSIGNER,
    qe_mrenclave=sha256(b"attestkit simulated QE enclave"),
    qe_isvprodid=_QE_ISVPRODID,
)
"""Content of SGX quotes; change fields of it by `msgspec.structs.replace`."""

SGX_COLLATERAL: Final = CollateralConfig(
    tcb_info=TcbInfoConfig(id="SGX", tdx=False),
    qe_identity=QeIdentityConfig(id="QE", mrsigner=_QE_MRSIGNER, isvprodid=_QE_ISVPRODID),
)
"""Content of the collateral for SGX quotes, an argument of `SimulatedPki.collateral`."""


class SimulatedEnclave(NamedTuple):
    """The fields of an enclave's report; the defaults are those of an enclave without debug."""

    mr_enclave: bytes = sha256(b"attestkit simulated enclave")  # 32 bytes
    mr_signer: bytes = sha256(b"attestkit simulated enclave signer")  # 32 bytes
    report_data: bytes = bytes(64)
    # 16 bytes: INIT and MODE64 (bit 1 would be DEBUG), then XFRM.
    attributes: bytes = bytes.fromhex("0500000000000000e700000000000000")
    isv_prod_id: int = 0  # 16 bits
    isv_svn: int = 1  # 16 bits
    misc_select: int = 0  # 32 bits

    def report(self, cpusvn: bytes) -> bytes:
        """Return the report, 384 bytes.

        Args:
            cpusvn: CPUSVN of the platform, 16 bytes.

        Raises:
            UsageError: If a field has the wrong size, or is out of range.
        """
        for name, size in (("mr_enclave", 32), ("mr_signer", 32), ("attributes", 16)):
            check_bytes(name, getattr(self, name), size)
        check_bytes("report_data", self.report_data, 64)
        check_bytes("cpusvn", cpusvn, 16)
        try:
            return ENCLAVE_REPORT.pack(
                cpusvn,
                self.misc_select,
                self.attributes,
                self.mr_enclave,
                self.mr_signer,
                self.isv_prod_id,
                self.isv_svn,
                self.report_data,
            )
        except struct.error as error:
            text = "isv_prod_id, isv_svn, misc_select: must be unsigned integers of 16/16/32 bits"
            raise UsageError(text, reason="out_of_range") from error


class SgxQuotingEnclave:
    """The SGX quoting enclave of a platform. Immutable, and so thread-safe.

    It shares platform, PCK certificate and QE id with the `QuotingEnclave` of TDX; its measurements
    and its attestation key differ from those, as on hardware.
    """

    def __init__(
        self, pki: SimulatedPki, platform_id: str = "0", *, config: QuoteConfig = SGX_QUOTES
    ) -> None:
        """Create the QE report.

        Args:
            pki: The issuer of the platform's certificate.
            platform_id: ASCII without a slash.
            config: Content of the quotes. `altered`, `reserved` and the fields of version 5 do not
                apply.

        Raises:
            UsageError: If the platform id is invalid.
        """
        platform = pki.platform(platform_id)
        self.qe_id: bytes = platform.qe_id  # 16 bytes, identifies the platform at a PCCS
        default = pki.key(f"platform/{platform_id}/sgx-attestation")
        key = pki.resolve(config.attestation_key, default)
        self._cpusvn = pki.config.cpusvn
        self._header = _sgx_header(config, pki.config, platform.qe_id)
        report = certified_qe_report(config, pki, platform, key)
        self._signer = _Signer(key, report, config.padding)
        self._cut = config.cut

    def quote(self, enclave: SimulatedEnclave) -> bytes:
        """Return a signed quote of version 3 over the report of an enclave.

        Raises:
            UsageError: As `SimulatedEnclave.report`.
        """
        quote = self._signer.sign(self._header + enclave.report(self._cpusvn))
        return quote[: len(quote) - self._cut]


def _sgx_header(config: QuoteConfig, pki: PkiConfig, qe_id: bytes) -> bytes:
    return _SGX_HEADER.pack(
        value_or(config.version, _VERSION),
        config.attestation_key_type,
        config.tee_type,
        value_or(config.qe_isvsvn, pki.qe_isvsvn),
        pki.pcesvn,
        config.vendor_id,
        value_or(config.user_data, qe_id + bytes(4)),
    )
