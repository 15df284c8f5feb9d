"""Attestation reports of AMD SEV-SNP, 1184 bytes (SEV-SNP Firmware ABI, ATTESTATION_REPORT).

Versions 2 to 5. Parsing says what the bytes look like, not who signed them. All integers are
little-endian, those of the signature too.
"""

from struct import Struct
from typing import NamedTuple

from attestkit.errors import FormatError, UsageError

__all__ = ["SnpReport", "SnpTcb"]

SIZE = 0x4A0
_SIGNATURE = 0x2A0

_REPORT = Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8sBBB21x64s8sBBBxBBBx8sQQ152x72s72s368x")

# Bytes that must be zero: in all reports, in version 2, in later ones, below version 5.
_RESERVED = ((0x4C, 0x50), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, _SIGNATURE), (0x330, SIZE))
_RESERVED_CPUID = (0x188, 0x1A0)
_RESERVED_AFTER_CPUID = (0x18B, 0x1A0)
_RESERVED_MITIGATIONS = (0x1F8, 0x208)

# CPUID family, first and last model, product.
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

# Where a product has its security version numbers in the 8 bytes of a TCB version.
_FAMILY_19 = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
_FAMILY_1A = {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7}
_TCB = {"Milan": _FAMILY_19, "Genoa": _FAMILY_19, "Turin": _FAMILY_1A, "Venice": _FAMILY_1A}


class SnpTcb(NamedTuple):
    """Security version numbers of a platform; compare component by component."""

    boot_loader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None  # Turin and later

    @classmethod
    def parse(cls, data: bytes, product: str) -> "SnpTcb":
        """Read the 8 bytes of a TCB version as `product` lays them out.

        Args:
            data: 8 bytes.
            product: Milan, Genoa, Turin or Venice.

        Raises:
            FormatError: a byte that the product does not use is not zero.
            UsageError: there are not 8 bytes, or no such product.
        """
        layout = _TCB.get(product)
        if layout is None or len(data) != 8:
            raise UsageError(f"no TCB version of {product!r} in {len(data)} bytes")
        for index, value in enumerate(data):
            if value and index not in layout.values():
                raise _bad("tcb", f"TCB version has a byte that {product} does not use", index)
        return cls(**{name: data[index] for name, index in layout.items()})


class SnpReport(NamedTuple):
    """What the secure processor says of a guest."""

    version: int  # 4 bytes: 2 to 5
    guest_svn: int  # 4 bytes
    policy: int  # 8 bytes: the guest's; bit 19 is DEBUG
    family_id: bytes  # 16 bytes
    image_id: bytes  # 16 bytes
    vmpl: int  # 4 bytes: 0 to 3
    signature_algorithm: int  # 4 bytes: 1 is ECDSA P-384 with SHA-384
    current_tcb: bytes  # 8 bytes, see `tcb`
    platform_info: int  # 8 bytes
    key_info: int  # 4 bytes: see `signing_key`, `chip_key_masked`, `author_key_enabled`
    report_data: bytes  # 64 bytes of the caller
    measurement: bytes  # 48 bytes: initial contents of the guest
    host_data: bytes  # 32 bytes, set by the host at launch
    id_key_digest: bytes  # 48 bytes
    author_key_digest: bytes  # 48 bytes
    report_id: bytes  # 32 bytes
    report_id_ma: bytes  # 32 bytes: of the migration agent
    reported_tcb: bytes  # 8 bytes, see `tcb`; the signing key is bound to it
    cpuid_family: int  # 1 byte, zero before version 3
    cpuid_model: int  # 1 byte, zero before version 3
    cpuid_stepping: int  # 1 byte, zero before version 3
    chip_id: bytes  # 64 bytes; zero if masked; Turin uses the first 8
    committed_tcb: bytes  # 8 bytes, see `tcb`
    current_build: int  # 1 byte
    current_minor: int  # 1 byte
    current_major: int  # 1 byte
    committed_build: int  # 1 byte
    committed_minor: int  # 1 byte
    committed_major: int  # 1 byte
    launch_tcb: bytes  # 8 bytes, see `tcb`
    launch_mit_vector: int  # 8 bytes: mitigations, zero before version 5
    current_mit_vector: int  # 8 bytes, zero before version 5
    signature_r: bytes  # 72 bytes, little-endian, below 2^384
    signature_s: bytes  # 72 bytes, little-endian, below 2^384
    raw: bytes  # all 1184 bytes

    @classmethod
    def parse(cls, data: bytes) -> "SnpReport":
        """Return the report in `data`, 1184 bytes.

        Raises:
            FormatError: it breaks its format; `reason` is size, version, signature_algorithm,
                policy, signing_key, reserved, signature or vmpl, `offset` the byte.
            UsageError: `data` is not bytes.
        """
        if type(data) is not bytes:  # a subclass may lie about its length
            raise UsageError(f"an SEV-SNP report is bytes, not {type(data).__name__}")
        if len(data) != SIZE:
            raise _bad("size", f"an SEV-SNP report has {SIZE} bytes", min(len(data), SIZE))
        report = cls._make((*_REPORT.unpack(data), data))
        if report.version not in (2, 3, 4, 5):
            raise _bad("version", "report version is not 2 to 5", 0x000)
        if report.signature_algorithm != 1:
            raise _bad("signature_algorithm", "signature algorithm is not 1 (ECDSA P-384)", 0x034)
        if not report.policy >> 17 & 1:
            raise _bad("policy", "bit 17 of the policy is not set", 0x008)
        if report.key_info >> 2 & 7 not in (0, 1):
            raise _bad("signing_key", "signing key is neither a VCEK nor a VLEK", 0x048)
        _check_reserved(report)
        for name, start, number in (
            ("r", 0x2A0, report.signature_r),
            ("s", 0x2E8, report.signature_s),
        ):
            if any(number[48:]):
                raise _bad("signature", f"{name} of the signature has over 384 bits", start + 48)
        if report.vmpl > 3:
            raise _bad("vmpl", "VMPL is not 0 to 3", 0x030)
        return report

    @property
    def signed_region(self) -> bytes:
        """The first 672 bytes, which the signature covers."""
        return self.raw[:_SIGNATURE]

    @property
    def signature(self) -> bytes:
        """ECDSA P-384: r and s, 48 bytes each, big-endian as elsewhere."""
        return self.signature_r[47::-1] + self.signature_s[47::-1]

    @property
    def signing_key(self) -> str:
        """Whose key signed: `VCEK`, the chip's, or `VLEK`, the cloud provider's."""
        return "VLEK" if self.key_info >> 2 & 7 else "VCEK"

    @property
    def chip_key_masked(self) -> bool:
        """Whether the chip's key is masked (MASK_CHIP_KEY), so that it signs no reports.

        That the host hides chip_id is another setting of its, and shows there: it is zero.
        """
        return bool(self.key_info >> 1 & 1)

    @property
    def author_key_enabled(self) -> bool:
        """Whether author_key_digest means something."""
        return bool(self.key_info & 1)

    @property
    def product(self) -> str | None:
        """Milan, Genoa, Turin or Venice; None before version 3 and for other processors.

        Genoa includes Bergamo and Siena.
        """
        if self.version < 3:
            return None
        for family, first, last, product in _PRODUCTS:
            if family == self.cpuid_family and first <= self.cpuid_model <= last:
                return product
        return None

    def tcb(self, which: str = "reported", product: str | None = None) -> SnpTcb:
        """Return one of the report's TCB versions.

        Args:
            which: current, reported, committed or launch.
            product: whose layout it has, where the report cannot tell (`product` is None): then
                the product that the signing key's certificate names.

        Raises:
            FormatError: a byte that the product does not use is not zero.
            UsageError: no such TCB version, or neither the report nor the caller names a product.
        """
        if which not in ("current", "reported", "committed", "launch"):
            raise UsageError(f"a report has no {which!r} TCB version")
        named = self.product or product
        if named is None:
            raise UsageError(
                f"a version {self.version} report needs the product from a certificate"
            )
        data: bytes = getattr(self, f"{which}_tcb")
        return SnpTcb.parse(data, named)

    def to_dict(self) -> dict[str, object]:
        """Return the fields for JSON, bytes in hex."""
        return {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in self._asdict().items()
            if name != "raw"
        }

    def __repr__(self) -> str:
        said = self.report_data[:8].hex()
        return f"<SnpReport v{self.version}, {self.signing_key}, report_data {said}...>"


def _bad(reason: str, message: str, offset: int) -> FormatError:
    return FormatError(message, offset=offset, reason=reason)


def _check_reserved(report: SnpReport) -> None:
    if report.key_info >> 5:
        raise _bad("reserved", "a reserved bit of the key information is set", 0x048)
    ranges = [*_RESERVED, _RESERVED_CPUID if report.version < 3 else _RESERVED_AFTER_CPUID]
    if report.version < 5:
        ranges.append(_RESERVED_MITIGATIONS)
    for start, end in sorted(ranges):
        if rest := report.raw[start:end].lstrip(b"\0"):
            raise _bad("reserved", "a reserved byte is not zero", end - len(rest))
