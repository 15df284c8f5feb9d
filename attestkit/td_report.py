"""TD reports: TDREPORT_STRUCT of the Intel TDX Module ABI, 1024 bytes.

A report is authenticated by a MAC with a key of the CPU package, so it can be verified on the same
machine only; the quoting enclave turns it into a quote. All integers are little-endian.
"""

from hashlib import sha384
from struct import Struct
from typing import NamedTuple

from attestkit._formats.binary_layout import check_reserved, check_size, fields_to_dict
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

__all__ = ["TdReport"]

SIZE = 1024

# REPORTMACSTRUCT at 0, TEE_TCB_INFO at 256, TDINFO at 512.
_REPORT = Struct(
    "<xxBx12x16s48s48s64s32x32sQ16s48s48s8s16s95x17x8s8s48s48s48s48s48s48s48s48s48s32s24xB3xI"
)
_TCB_INFO = slice(256, 495)
_TD_INFO = slice(512, 1024)

# TEE_TCB_INFO.VALID: the fields of TDX 1.0, or these and tee_tcb_svn2 of TDX 1.5.
_VALID_10 = 0x1FF
_VALID_15 = 0x301FF

# Bytes that must be zero: in all reports; then, depending on VALID and the version.
_RESERVED = ((3, 16), (192, 224), (400, 495), (495, 512))
_TCB_SVN2 = (384, 400)
_SERVICE_TD_HASH = (912, 960)
_TAIL = (960, 1024)
_TAIL_EXTENDED = ((992, 1016), (1017, 1020))


class TdReport(NamedTuple):
    """A report of the TDX module about a TD."""

    version: int  # 1 byte: 0, 1 (with the service TD hash) or 3 (extended)
    cpu_svn: bytes  # 16 bytes
    tee_tcb_info_hash: bytes  # 48 bytes, SHA-384, checked by `parse`
    tee_info_hash: bytes  # 48 bytes, SHA-384, checked by `parse`
    report_data: bytes  # 64 bytes, chosen by the caller
    mac: bytes  # 32 bytes; only the CPU package can verify it
    valid: int  # 8 bytes: 0x1FF or, with tee_tcb_svn2, 0x301FF
    tee_tcb_svn: bytes  # 16 bytes, an SVN each
    mr_seam: bytes  # 48 bytes: measurement of the TDX module
    mr_signer_seam: bytes  # 48 bytes: zero for Intel's module
    seam_attributes: bytes  # 8 bytes
    tee_tcb_svn2: bytes  # 16 bytes, TDX 1.5: the SVNs after a module update; else zero
    td_attributes: bytes  # 8 bytes; bit 0 is DEBUG
    xfam: bytes  # 8 bytes: extended features that the TD may use
    mrtd: bytes  # 48 bytes: measurement of the initial contents of the TD
    mr_config_id: bytes  # 48 bytes, set at launch
    mr_owner: bytes  # 48 bytes, set at launch
    mr_owner_config: bytes  # 48 bytes, set at launch
    rtmr0: bytes  # 48 bytes
    rtmr1: bytes  # 48 bytes
    rtmr2: bytes  # 48 bytes
    rtmr3: bytes  # 48 bytes
    mr_service_td: bytes  # 48 bytes: hash of the bound service TDs; zero in version 0
    td_id: bytes  # 32 bytes: random per launch; zero below version 3
    vmid: int  # 1 byte: 0 for the TD or its L1 VMM, 1 to 3 for a nested VM
    td_info_valid: int  # 4 bytes, version 3: bit 0 mr_service_td, 8 td_id, 9 vmid
    raw: bytes  # all 1024 bytes

    @classmethod
    def parse(cls, data: bytes) -> "TdReport":
        """Parse a report of 1024 bytes and check its two hashes.

        Raises:
            FormatError: If the report is malformed: `wrong_size`, `unsupported_version`,
                `wrong_value` (type, subtype, VALID or reserved bytes) or `inconsistent` (a hash).
            UsageError: If `data` is not `bytes`.
        """
        check_size("TD report", data, SIZE)
        if data[0] != 0x81:
            raise _bad("wrong_value", f"type must be 0x81 (TDX), not 0x{data[0]:02x}", 0)
        if data[1] != 0:
            raise _bad("wrong_value", f"subtype must be 0, not {data[1]}", 1)
        if data[2] not in (0, 1, 3):
            raise _bad("unsupported_version", f"version must be 0, 1 or 3, not {data[2]}", 2)
        report = cls._make((*_REPORT.unpack(data), data))
        if report.valid not in (_VALID_10, _VALID_15):
            message = f"VALID must be 0x1ff (TDX 1.0) or 0x301ff (1.5), not 0x{report.valid:x}"
            raise _bad("wrong_value", message, 256)
        _check_reserved(report)
        _check_hashes(report)
        return report

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """RTMR0 to RTMR3, 48 bytes each."""
        return self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3

    def quote_body(self, *, extended: bool = False) -> bytes:
        """Return the TD quote body of this report: 584 bytes, or 648 (TDX 1.5) if `extended`."""
        raw = self.raw
        registers = raw[528:912]  # mrtd to rtmr3
        body = raw[264:384] + raw[512:528] + registers + self.report_data
        return body + self.tee_tcb_svn2 + self.mr_service_td if extended else body

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name, without `raw`, as JSON values: bytes in hex."""
        return fields_to_dict(self)

    def __repr__(self) -> str:
        return f"<TdReport v{self.version}, report_data {self.report_data[:8].hex()}...>"


def _bad(reason: FormatReason, message: str, offset: int) -> FormatError:
    return FormatError(f"TD report: {message}", offset=offset, reason=reason)


def _check_reserved(report: TdReport) -> None:
    ranges = list(_RESERVED)
    if report.valid == _VALID_10:
        ranges.append(_TCB_SVN2)
    if report.version == 0:
        ranges.append(_SERVICE_TD_HASH)
    ranges += _TAIL_EXTENDED if report.version == 3 else (_TAIL,)
    check_reserved("TD report", report.raw, ranges)


def _check_hashes(report: TdReport) -> None:
    if sha384(report.raw[_TCB_INFO]).digest() != report.tee_tcb_info_hash:
        raise _bad("inconsistent", "TEE_TCB_INFO_HASH is not the hash of TEE_TCB_INFO", 32)
    if sha384(report.raw[_TD_INFO]).digest() != report.tee_info_hash:
        raise _bad("inconsistent", "TEE_INFO_HASH is not the hash of TDINFO", 80)
