"""Attestation reports of AMD SEV-SNP: ATTESTATION_REPORT of the Firmware ABI, 1184 bytes.

Versions 2 to 5. Parsing does not verify the signature. All integers are little-endian, including
those of the signature.
"""

from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from attestkit._formats.binary_layout import check_reserved, check_size, fields_to_dict
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError, UsageError

__all__ = ["SnpReport", "SnpTcb"]

SIZE = 0x4A0
_SIGNATURE = 0x2A0

_REPORT = Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8sBBB21x64s8sBBBxBBBx8sQQ152x72s72s368x")

# Bytes that must be zero, by version: CPUID came in version 3, mitigation vectors in version 5.
_RESERVED = {
    version: (
        (0x4C, 0x50),
        (0x188 if version < 3 else 0x18B, 0x1A0),
        (0x1EB, 0x1EC),
        (0x1EF, 0x1F0),
        (0x1F8 if version < 5 else 0x208, _SIGNATURE),
        (0x330, SIZE),
    )
    for version in (2, 3, 4, 5)
}

# CPUID family, first model, last model, product.
_PRODUCTS = (
    (0x19, 0x00, 0x0F, "Milan"),
    (0x19, 0x10, 0x1F, "Genoa"),
    (0x19, 0xA0, 0xAF, "Genoa"),
    (0x1A, 0x00, 0x11, "Turin"),
    (0x1A, 0x50, 0x57, "Venice"),
    (0x1A, 0x90, 0x9F, "Venice"),
    (0x1A, 0xA0, 0xAF, "Venice"),
    (0x1A, 0xC0, 0xC7, "Venice"),
)

# Offsets of the security version numbers in the 8 bytes of a TCB version, by product.
_FAMILY_19 = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
_FAMILY_1A = {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7}
_TCB = {"Milan": _FAMILY_19, "Genoa": _FAMILY_19, "Turin": _FAMILY_1A, "Venice": _FAMILY_1A}

TCB_COMPONENTS = {product: tuple(layout) for product, layout in _TCB.items()}
"""Names of the components of a TCB version, which are fields of `SnpTcb`, by product."""


class SnpTcb(NamedTuple):
    """Security version numbers (SVNs) of a platform, 0 to 255 each; `fmc` is None before Turin."""

    boot_loader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None  # Turin and later

    @classmethod
    def parse(cls, data: bytes, product: str) -> "SnpTcb":
        """Parse a TCB version in the layout of `product`.

        Args:
            data: 8 bytes.
            product: Milan, Genoa, Turin or Venice.

        Raises:
            FormatError: If a byte that is reserved on the product is nonzero.
            UsageError: If `data` does not have 8 bytes, or the product is unknown.
        """
        layout = _TCB.get(product)
        if layout is None:
            message = f"product: {product!r} is not one of {', '.join(_TCB)}"
            raise UsageError(message, reason="unknown_name")
        if len(data) != 8:
            raise UsageError(f"TCB version: must be 8 bytes, not {len(data)}", reason="wrong_size")
        for index, value in enumerate(data):
            if value and index not in layout.values():
                message = f"TCB version: a byte that {product} does not use must be zero"
                raise FormatError(message, offset=index, reason="wrong_value")
        return cls(**{name: data[index] for name, index in layout.items()})


class SnpReport(NamedTuple):
    """A report of the secure processor about a guest."""

    version: int  # 4 bytes: 2 to 5
    guest_svn: int  # 4 bytes
    policy: int  # 8 bytes: guest policy, of which bits 26 to 63 are zero; bit 19 is DEBUG
    family_id: bytes  # 16 bytes
    image_id: bytes  # 16 bytes
    vmpl: int  # 4 bytes: 0 to 3
    signature_algorithm: int  # 4 bytes: 1 is ECDSA P-384 with SHA-384
    current_tcb: bytes  # 8 bytes, see `tcb`
    platform_info: int  # 8 bytes
    key_info: int  # 4 bytes: see `signing_key`, `chip_key_masked`, `author_key_enabled`
    report_data: bytes  # 64 bytes, chosen by the caller
    measurement: bytes  # 48 bytes: launch digest, of the initial contents of the guest
    host_data: bytes  # 32 bytes, set by the host at launch
    id_key_digest: bytes  # 48 bytes
    author_key_digest: bytes  # 48 bytes
    report_id: bytes  # 32 bytes
    report_id_ma: bytes  # 32 bytes: report ID of the migration agent
    reported_tcb: bytes  # 8 bytes, see `tcb`; the signing key is derived from it
    cpuid_family: int  # 1 byte, zero before version 3
    cpuid_model: int  # 1 byte, zero before version 3
    cpuid_stepping: int  # 1 byte, zero before version 3
    chip_id: bytes  # 64 bytes, on Turin 8 and zeros; zero if masked
    committed_tcb: bytes  # 8 bytes, see `tcb`
    current_build: int  # 1 byte
    current_minor: int  # 1 byte
    current_major: int  # 1 byte
    committed_build: int  # 1 byte
    committed_minor: int  # 1 byte
    committed_major: int  # 1 byte
    launch_tcb: bytes  # 8 bytes, see `tcb`
    launch_mit_vector: int  # 8 bytes: mitigation vector, zero before version 5
    current_mit_vector: int  # 8 bytes, zero before version 5
    signature_r: bytes  # 72 bytes, little-endian, below 2^384
    signature_s: bytes  # 72 bytes, little-endian, below 2^384
    raw: bytes  # all 1184 bytes

    @classmethod
    def parse(cls, data: bytes) -> "SnpReport":
        """Parse a report of 1184 bytes.

        Raises:
            FormatError: If the report is malformed: `wrong_size`, `unsupported_version`,
                `unsupported_algorithm` or `wrong_value`; `offset` is the offset of the field.
            UsageError: If `data` is not `bytes`.
        """
        check_size("SEV-SNP report", data, SIZE)
        report = cls._make((*_REPORT.unpack(data), data))
        if report.version not in _RESERVED:
            message = f"version must be 2 to 5, not {report.version}"
            if report.version > 5:  # fields move into reserved space
                message += "; update attestkit for reports of newer firmware"
            raise _bad("unsupported_version", message, 0x000)
        if report.signature_algorithm != 1:
            message = f"signature algorithm must be 1 (P-384), not {report.signature_algorithm}"
            raise _bad("unsupported_algorithm", message, 0x034)
        if not report.policy >> 17 & 1:
            raise _bad("wrong_value", "bit 17 of POLICY must be set", 0x008)
        if report.policy >> 26:
            raise _bad("wrong_value", "bits 26 to 63 of POLICY must be zero", 0x008)
        if report.key_info >> 2 & 7 not in (0, 1):
            raise _bad("wrong_value", "SIGNING_KEY must be 0 (VCEK) or 1 (VLEK)", 0x048)
        _check_reserved(report)
        for name, start, number in (
            ("r", 0x2A0, report.signature_r),
            ("s", 0x2E8, report.signature_s),
        ):
            if number[48:] != bytes(24):
                message = f"{name} of the signature must fit in 384 bits"
                raise _bad("wrong_value", message, start + 48)
        if report.vmpl > 3:
            raise _bad("wrong_value", f"VMPL must be 0 to 3, not {report.vmpl}", 0x030)
        return report

    @property
    def signed_region(self) -> bytes:
        """The first 672 bytes, covered by the signature."""
        return self.raw[:_SIGNATURE]

    @property
    def signature(self) -> bytes:
        """ECDSA P-384 signature: r and s, 48 bytes each, big-endian."""
        return self.signature_r[47::-1] + self.signature_s[47::-1]

    @property
    def signing_key(self) -> str:
        """Kind of the signing key: `VCEK` (of the chip) or `VLEK` (of the cloud provider)."""
        return "VLEK" if self.key_info >> 2 & 7 else "VCEK"

    @property
    def chip_key_masked(self) -> bool:
        """Whether the chip's key does not sign reports (MASK_CHIP_KEY).

        Masking of `chip_id` is an independent setting: `chip_id` is then zero.
        """
        return bool(self.key_info >> 1 & 1)

    @property
    def author_key_enabled(self) -> bool:
        """Whether an author key signed the ID key (AUTHOR_KEY_EN), so that its digest is valid."""
        return bool(self.key_info & 1)

    @property
    def product(self) -> str | None:
        """Milan, Genoa (with Bergamo and Siena), Turin or Venice.

        None for an unknown processor, and for a report of version 2, which does not identify it.
        """
        return None if self.version < 3 else _find_product(self.cpuid_family, self.cpuid_model)

    def tcb(self, which: str = "reported", product: str | None = None) -> SnpTcb:
        """Return one of the four TCB versions of the report.

        Args:
            which: `current`, `reported`, `committed` or `launch`.
            product: Product in the certificate of the signing key. It selects the layout if the
                `product` of the report is None.

        Raises:
            FormatError: If a byte that is reserved on the product is nonzero.
            UsageError: If `which` is unknown, or the product is unknown or missing.
        """
        if which not in ("current", "reported", "committed", "launch"):
            message = f"TCB version: {which!r} is not one of current, reported, committed, launch"
            raise UsageError(message, reason="unknown_name")
        layout = self.product or product
        if layout is None:
            raise UsageError(
                f"product: not in a report of version {self.version}; pass the product of the "
                "signing key's certificate",
                reason="missing",
            )
        data: bytes = getattr(self, f"{which}_tcb")
        return _parse_tcb(data, layout)

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name, without `raw`, as JSON values: bytes in hex."""
        return fields_to_dict(self)

    def __repr__(self) -> str:
        report_data = self.report_data[:8].hex()
        return f"<SnpReport v{self.version}, {self.signing_key}, report_data {report_data}...>"


@lru_cache(maxsize=64)
def _find_product(family: int, model: int) -> str | None:
    for known, first, last, product in _PRODUCTS:
        if known == family and first <= model <= last:
            return product
    return None


# Reports of a processor have the same few.
_parse_tcb = lru_cache(maxsize=256)(SnpTcb.parse)


@lru_cache(maxsize=8)
def parse_snp_report(data: bytes) -> SnpReport:
    """Return `SnpReport.parse(data)` from a small cache: a verification parses a report often."""
    return SnpReport.parse(data)


def _bad(reason: FormatReason, message: str, offset: int) -> FormatError:
    return FormatError(f"SEV-SNP report: {message}", offset=offset, reason=reason)


def _check_reserved(report: SnpReport) -> None:
    if report.key_info >> 5:
        raise _bad("wrong_value", "reserved bit of the key information must be zero", 0x048)
    check_reserved("SEV-SNP report", report.raw, _RESERVED[report.version])
