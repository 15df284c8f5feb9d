"""TD reports: 1024 bytes that a TDX module gives to its TD (Intel TDX Module ABI, TDREPORT_STRUCT).

A key of the CPU package authenticates a report, so it is good on the machine that made it and
nowhere else; a quote says the same to others. All integers are little-endian.
"""

from hashlib import sha384
from struct import Struct
from typing import NamedTuple

from attestkit.errors import FormatError, UsageError

__all__ = ["TdReport"]

SIZE = 1024

# REPORTMACSTRUCT at 0, TEE_TCB_INFO at 256, TDINFO at 512.
_REPORT = Struct(
    "<xxBx12x16s48s48s64s32x32sQ16s48s48s8s16s95x17x8s8s48s48s48s48s48s48s48s48s48s32s24xB3xI"
)
_TCB_INFO = slice(256, 495)
_TD_INFO = slice(512, 1024)

# Which fields of TEE_TCB_INFO are valid: those of TDX 1.0; those and tee_tcb_svn2 of TDX 1.5.
_VALID_10 = 0x1FF
_VALID_15 = 0x301FF

# Bytes that must be zero: in all reports; besides those, by what the report has.
_RESERVED = ((3, 16), (192, 224), (400, 495), (495, 512))
_TCB_SVN2 = (384, 400)
_SERVICE_TD_HASH = (912, 960)
_TAIL = (960, 1024)
_TAIL_EXTENDED = ((992, 1016), (1017, 1020))


class TdReport(NamedTuple):
    """What a TDX module says of a TD, for readers on the same machine."""

    version: int  # 1 byte: 0, 1 (has a service TD hash) or 3 (extended)
    cpu_svn: bytes  # 16 bytes
    tee_tcb_info_hash: bytes  # 48 bytes, SHA-384, checked
    tee_info_hash: bytes  # 48 bytes, SHA-384, checked
    report_data: bytes  # 64 bytes of the caller
    mac: bytes  # 32 bytes, which only the CPU package can check
    valid: int  # 8 bytes: 0x1FF or, with tee_tcb_svn2, 0x301FF
    tee_tcb_svn: bytes  # 16 bytes, a vector: compare byte by byte
    mr_seam: bytes  # 48 bytes: measurement of the TDX module
    mr_signer_seam: bytes  # 48 bytes: zero for Intel's module
    seam_attributes: bytes  # 8 bytes
    tee_tcb_svn2: bytes  # 16 bytes, TDX 1.5: the SVNs after a module update; else zero
    td_attributes: bytes  # 8 bytes; bit 0 is DEBUG
    xfam: bytes  # 8 bytes: extended features the TD may use
    mr_td: bytes  # 48 bytes: initial contents of the TD
    mr_config_id: bytes  # 48 bytes, set by the owner at launch
    mr_owner: bytes  # 48 bytes, the same
    mr_owner_config: bytes  # 48 bytes, the same
    rtmr0: bytes  # 48 bytes
    rtmr1: bytes  # 48 bytes
    rtmr2: bytes  # 48 bytes
    rtmr3: bytes  # 48 bytes
    mr_service_td: bytes  # 48 bytes: hash of the bound service TDs; zero in version 0
    td_id: bytes  # 32 bytes: random per launch; zero below version 3
    vmid: int  # 1 byte: 0 the TD or its L1, 1 to 3 a nested VM
    td_info_valid: int  # 4 bytes, version 3: bit 0 mr_service_td, 8 td_id, 9 vmid
    raw: bytes  # all 1024 bytes

    @classmethod
    def parse(cls, data: bytes) -> "TdReport":
        """Return the report in `data`, 1024 bytes.

        Raises:
            FormatError: it breaks its format; `reason` is size, type, subtype, version, valid,
                reserved, tee_tcb_info_hash or tee_info_hash, `offset` the byte.
            UsageError: `data` is not bytes.
        """
        if type(data) is not bytes:  # a subclass may lie about its length
            raise UsageError(f"a TD report is bytes, not {type(data).__name__}")
        if len(data) != SIZE:
            raise _bad("size", f"a TD report has {SIZE} bytes", min(len(data), SIZE))
        if data[0] != 0x81:
            raise _bad("type", "report type is not 0x81 (TDX)", 0)
        if data[1] != 0:
            raise _bad("subtype", "report subtype is not 0", 1)
        if data[2] not in (0, 1, 3):
            raise _bad("version", "report version is not 0, 1 or 3", 2)
        report = cls._make((*_REPORT.unpack(data), data))
        if report.valid not in (_VALID_10, _VALID_15):
            raise _bad("valid", "valid fields are not those of TDX 1.0 or 1.5", 256)
        _check_reserved(report)
        _check_hashes(report)
        return report

    @property
    def mrtd(self) -> bytes:
        """`mr_td`, by the name it has in a `Quote`."""
        return self.mr_td

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The four registers that are extended at run time, 48 bytes each."""
        return self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3

    def quote_body(self, *, extended: bool = False) -> bytes:
        """Return the body of a quote of this report: 584 bytes, or 648 (TDX 1.5) if `extended`."""
        raw = self.raw
        registers = raw[528:912]  # mr_td to rtmr3
        body = raw[264:384] + raw[512:528] + registers + self.report_data
        return body + self.tee_tcb_svn2 + self.mr_service_td if extended else body

    def to_dict(self) -> dict[str, object]:
        """Return the fields for JSON, bytes in hex."""
        return {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in self._asdict().items()
            if name != "raw"
        }

    def __repr__(self) -> str:
        said = self.report_data[:8].hex()
        return f"<TdReport v{self.version}, report_data {said}...>"


def _bad(reason: str, message: str, offset: int) -> FormatError:
    return FormatError(message, offset=offset, reason=reason)


def _check_reserved(report: TdReport) -> None:
    ranges = list(_RESERVED)
    if report.valid == _VALID_10:
        ranges.append(_TCB_SVN2)
    if report.version == 0:
        ranges.append(_SERVICE_TD_HASH)
    ranges += _TAIL_EXTENDED if report.version == 3 else (_TAIL,)
    for start, end in ranges:
        if rest := report.raw[start:end].lstrip(b"\0"):
            raise _bad("reserved", "a reserved byte is not zero", end - len(rest))


def _check_hashes(report: TdReport) -> None:
    if sha384(report.raw[_TCB_INFO]).digest() != report.tee_tcb_info_hash:
        raise _bad("tee_tcb_info_hash", "TEE_TCB_INFO does not have the hash the report gives", 32)
    if sha384(report.raw[_TD_INFO]).digest() != report.tee_info_hash:
        raise _bad("tee_info_hash", "TDINFO does not have the hash the report gives", 80)
