"""TCB info (version 3) and QE identity (version 2), signed by Intel; and the QE check.

Their members are those of Intel's PCS documentation.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from attestkit.quote import EnclaveReport
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.dcap.reasons import refuse
from attestkit.verifier.dcap.signed_body import (
    QE_IDENTITY,
    TCB_INFO,
    BodyKind,
    Date,
    Hex2,
    Hex4,
    Hex6,
    Hex8,
    Hex16,
    Hex32,
    Hex48,
    Uint8,
    Uint16,
    Uint32,
    decode_body,
    seconds,
)

SGX: Final = 0x00
"""TEE type of SGX."""
TDX: Final = 0x81
"""TEE type of TDX."""
_COMPONENTS: Final = 16
_LABEL: Final = 60  # characters of a component's label; Intel's have 30
PLATFORM_STATUSES: Final = {
    status.value: status
    for status in TcbStatus
    if status
    not in {TcbStatus.TD_RELAUNCH_ADVISED, TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED}
}
"""Statuses of a platform's levels."""
ENCLAVE_STATUSES: Final = {
    status.value: status
    for status in (TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE, TcbStatus.REVOKED)
}
"""Statuses of the levels of TDX modules and quoting enclaves."""
_DEBUG: Final = 0x02  # bit of the attributes


class PlatformLevel(NamedTuple):
    """TCB level of a platform."""

    sgx: bytes  # 16 SVNs
    pcesvn: int
    tdx: bytes  # 16 SVNs; empty for SGX
    date: int  # Unix seconds
    status: TcbStatus
    advisory_ids: tuple[str, ...]


class SvnLevel(NamedTuple):
    """TCB level of a TDX module or a quoting enclave."""

    isvsvn: int
    date: int  # Unix seconds
    status: TcbStatus
    advisory_ids: tuple[str, ...]


class TdxModule(NamedTuple):
    """A version of the TDX module."""

    mrsigner: bytes  # 48 bytes
    attributes: bytes  # 8 bytes
    levels: tuple[SvnLevel, ...]  # highest first; none for version 0


class Component(msgspec.Struct, frozen=True, gc=False):
    """Component of a platform's TCB in the JSON: its minimum SVN, and a description."""

    svn: Uint8
    category: str = ""  # source of its updates: BIOS, OS/VMM
    type: str = ""

    @property
    def label(self) -> str:
        """The description for error messages: ASCII, at most 60 characters."""
        return ascii(": ".join(filter(None, (self.category, self.type)))[:_LABEL])[1:-1]


class TcbInfo(NamedTuple):
    """Decoded TCB info of a platform type (FMSPC)."""

    tee_type: int
    fmspc: bytes  # 6 bytes
    pceid: bytes  # 2 bytes
    start: int  # Unix seconds: issueDate
    end: int  # Unix seconds, exclusive: nextUpdate
    evaluation_data_number: int
    levels: tuple[PlatformLevel, ...]  # highest first
    module: TdxModule | None  # of version 0
    modules: Mapping[str, TdxModule]  # by id, in upper case: TDX_ and two hex digits
    sgx_components: tuple[Component, ...]  # 16 components of the first level
    tdx_components: tuple[Component, ...]  # 16 components, or none
    # Indices of the components for which a level needs an SVN above 0.
    sgx_needed: tuple[int, ...]
    tdx_needed: tuple[int, ...]


class _Svns(msgspec.Struct):
    sgx: list[Component] = msgspec.field(name="sgxtcbcomponents")
    pcesvn: Uint16
    tdx: list[Component] | None = msgspec.field(name="tdxtcbcomponents", default=None)


class _IsvSvn(msgspec.Struct):
    isvsvn: Uint16


class _Level(msgspec.Struct, rename="camel", kw_only=True):
    tcb_date: Date
    tcb_status: str
    advisory_ids: list[str] = msgspec.field(name="advisoryIDs", default_factory=list)


class _PlatformLevel(_Level, rename="camel", kw_only=True):
    tcb: _Svns


class EncodedSvnLevel(_Level, rename="camel", kw_only=True):
    """A level of a TDX module or a quoting enclave, as in the JSON."""

    tcb: _IsvSvn


class _Module(msgspec.Struct, rename="camel"):
    mrsigner: Hex48
    attributes: Hex8
    attributes_mask: Hex8


class _ModuleIdentity(_Module, rename="camel"):
    id: str
    tcb_levels: list[EncodedSvnLevel]


class _TcbInfo(msgspec.Struct, rename="camel"):
    id: str
    version: int
    tcb_type: int
    issue_date: Date
    next_update: Date
    fmspc: Hex6
    pce_id: Hex2
    tcb_evaluation_data_number: Uint32
    tcb_levels: list[_PlatformLevel]
    # UNSET: a member that is null is malformed, not absent.
    tdx_module: _Module | msgspec.UnsetType = msgspec.UNSET
    tdx_module_identities: list[_ModuleIdentity] | msgspec.UnsetType = msgspec.UNSET


_tcb_info_decoder: Final = msgspec.json.Decoder(_TcbInfo)
_TCB_INFO_TYPE: Final = {"version": (3,), "id": ("SGX", "TDX"), "tcbType": (0,)}


def read_tcb_info(text: str) -> TcbInfo:
    """Decode TCB info; levels are sorted, highest first, whatever their order in the text.

    Raises:
        CollateralError: If `text` is malformed, or has a level twice (`tcb_info_malformed`).
        VerificationError: If it is not version 3 for SGX or TDX (`tcb_info_wrong_type`).
    """
    info = decode_body(TCB_INFO, text, _tcb_info_decoder, _TCB_INFO_TYPE)
    tee_type = TDX if info.id == "TDX" else SGX
    levels = [_platform_level(n, level, tee_type) for n, level in enumerate(info.tcb_levels)]
    if not levels:
        raise TCB_INFO.refuse("tcbLevels: must not be empty")
    levels.sort(key=_svns, reverse=True)
    if len(set(map(_svns, levels))) != len(levels):
        raise TCB_INFO.refuse("tcbLevels: SVNs of levels must be unique")
    module, modules = _modules(info) if tee_type == TDX else _no_modules(info)
    newest = info.tcb_levels[0].tcb
    return TcbInfo(
        tee_type=tee_type,
        fmspc=bytes.fromhex(info.fmspc),
        pceid=bytes.fromhex(info.pce_id),
        start=seconds(TCB_INFO, info.issue_date),
        end=seconds(TCB_INFO, info.next_update),
        evaluation_data_number=info.tcb_evaluation_data_number,
        levels=tuple(levels),
        module=module,
        modules=MappingProxyType(modules),
        sgx_components=tuple(newest.sgx),
        tdx_components=tuple(newest.tdx or ()),
        sgx_needed=_needed([level.sgx for level in levels]),
        tdx_needed=_needed([level.tdx for level in levels]),
    )


def _platform_level(number: int, level: _PlatformLevel, tee_type: int) -> PlatformLevel:
    where = f"tcbLevels: level {number}"
    tdx = level.tcb.tdx or [] if tee_type == TDX else []
    expected = _COMPONENTS if tee_type == TDX else 0
    if (len(level.tcb.sgx), len(tdx)) != (_COMPONENTS, expected):
        raise TCB_INFO.refuse(f"{where}: must have {_COMPONENTS} components of each kind")
    status = PLATFORM_STATUSES.get(level.tcb_status)
    if status is None:
        raise TCB_INFO.refuse(f"{where}: unknown tcbStatus: {level.tcb_status[:20]!a}")
    return PlatformLevel(
        bytes([component.svn for component in level.tcb.sgx]),
        level.tcb.pcesvn,
        bytes([component.svn for component in tdx]),
        seconds(TCB_INFO, level.tcb_date),
        status,
        tuple(level.advisory_ids),
    )


def _svns(level: PlatformLevel) -> tuple[bytes, int, bytes]:
    return level[:3]


def _needed(levels: list[bytes]) -> tuple[int, ...]:
    bits = reduce(or_, [int.from_bytes(level, "big") for level in levels])
    return tuple([n for n, svn in enumerate(bits.to_bytes(len(levels[0]), "big")) if svn])


def _no_modules(info: _TcbInfo) -> tuple[None, dict[str, TdxModule]]:
    if info.tdx_module is not msgspec.UNSET or info.tdx_module_identities is not msgspec.UNSET:
        message = "TCB info: id is SGX, but it has TDX modules"
        raise refuse("tcb_info_wrong_type", message)
    return None, {}


def _modules(info: _TcbInfo) -> tuple[TdxModule, dict[str, TdxModule]]:
    """Return the TDX module of version 0, and the others by their id, such as TDX_01."""
    base, identities = info.tdx_module, info.tdx_module_identities
    if isinstance(base, msgspec.UnsetType):
        raise TCB_INFO.refuse("tdxModule: missing")
    if isinstance(identities, msgspec.UnsetType):
        identities = []
    elif not identities:
        raise TCB_INFO.refuse("tdxModuleIdentities: must not be empty")
    modules: dict[str, TdxModule] = {}
    for identity in identities:
        levels = sorted_levels(identity.tcb_levels)
        if not levels or len({level.isvsvn for level in levels}) != len(levels):
            raise TCB_INFO.refuse("tdxModuleIdentities: must have levels with unique ISVSVNs")
        # Of two identities with one id, the first counts, as in Intel's library.
        modules.setdefault(identity.id.upper(), _module(identity, levels))
    return _module(base, ()), modules


def _module(module: _Module, levels: tuple[SvnLevel, ...]) -> TdxModule:
    return TdxModule(bytes.fromhex(module.mrsigner), bytes.fromhex(module.attributes), levels)


def sorted_levels(levels: list[EncodedSvnLevel], kind: BodyKind = TCB_INFO) -> tuple[SvnLevel, ...]:
    """Return levels by ISVSVN and date, highest first; CollateralError for an unknown status."""
    found = []
    for level in levels:
        status = ENCLAVE_STATUSES.get(level.tcb_status)
        if status is None:
            raise kind.refuse(f"unknown tcbStatus: {level.tcb_status[:20]!a}")
        date = seconds(kind, level.tcb_date)
        found.append(SvnLevel(level.tcb.isvsvn, date, status, tuple(level.advisory_ids)))
    return tuple(sorted(found, key=lambda level: level[:2], reverse=True))


class QeIdentity(NamedTuple):
    """Decoded QE identity; MISCSELECT, ATTRIBUTES and their masks are little-endian integers."""

    tee_type: int
    start: int  # Unix seconds: issueDate
    end: int  # Unix seconds, exclusive: nextUpdate
    evaluation_data_number: int
    miscselect: int
    miscselect_mask: int
    attributes: int
    attributes_mask: int
    mrsigner: bytes  # 32 bytes
    isvprodid: int
    levels: tuple[SvnLevel, ...]  # highest first


class _QeIdentity(msgspec.Struct, rename="camel"):
    id: str
    version: int
    issue_date: Date
    next_update: Date
    tcb_evaluation_data_number: Uint32
    miscselect: Hex4
    miscselect_mask: Hex4
    attributes: Hex16
    attributes_mask: Hex16
    mrsigner: Hex32
    isvprodid: Uint16
    tcb_levels: list[EncodedSvnLevel]


_qe_identity_decoder: Final = msgspec.json.Decoder(_QeIdentity)
_QE_IDENTITY_TYPE: Final = {"version": (2,), "id": ("QE", "TD_QE")}


def read_qe_identity(text: str) -> QeIdentity:
    """Decode QE identity; levels are sorted, highest first, whatever their order in the text.

    Raises:
        CollateralError: If `text` is malformed, or has a level twice (`qe_identity_malformed`).
        VerificationError: If it is not version 2 for SGX or TDX (`qe_identity_wrong_type`).
    """
    identity = decode_body(QE_IDENTITY, text, _qe_identity_decoder, _QE_IDENTITY_TYPE)
    levels = sorted_levels(identity.tcb_levels, QE_IDENTITY)
    if not levels or len({level[:2] for level in levels}) != len(levels):
        raise QE_IDENTITY.refuse("tcbLevels: must have levels, unique by ISVSVN and date")
    return QeIdentity(
        tee_type=TDX if identity.id == "TD_QE" else SGX,
        start=seconds(QE_IDENTITY, identity.issue_date),
        end=seconds(QE_IDENTITY, identity.next_update),
        evaluation_data_number=identity.tcb_evaluation_data_number,
        miscselect=_integer(identity.miscselect),
        miscselect_mask=_integer(identity.miscselect_mask),
        attributes=_integer(identity.attributes),
        attributes_mask=_integer(identity.attributes_mask),
        mrsigner=bytes.fromhex(identity.mrsigner),
        isvprodid=identity.isvprodid,
        levels=levels,
    )


def check_quoting_enclave(report: EnclaveReport, identity: QeIdentity) -> None:
    """Check that `report`, the QE report, is of the quoting enclave that `identity` describes.

    Values in `identity` are not masked: one with a bit outside of its mask never matches.

    Raises:
        VerificationError: If a field differs, or the enclave runs in debug mode
            (`qe_identity_mismatch`).
    """
    attributes = int.from_bytes(report.attributes, "little")
    masked = report.misc_select & identity.miscselect_mask
    if masked != identity.miscselect:
        raise _mismatch("MISCSELECT", masked, identity.miscselect, 4, " under its mask")
    masked = attributes & identity.attributes_mask
    if masked != identity.attributes:
        raise _mismatch("ATTRIBUTES", masked, identity.attributes, 16, " under its mask")
    if attributes & _DEBUG:
        message = "quoting enclave: runs in debug mode, which is never accepted; it is not Intel's"
        raise refuse("qe_identity_mismatch", message)
    if report.mr_signer != identity.mrsigner:
        found, expected = report.mr_signer.hex(), identity.mrsigner.hex()
        message = f"quoting enclave: MRSIGNER is {found}, must be {expected}"
        raise refuse("qe_identity_mismatch", f"{message}: it is not Intel's")
    if report.isv_prod_id != identity.isvprodid:
        raise _mismatch("ISVPRODID", report.isv_prod_id, identity.isvprodid, 2)


def _mismatch(field: str, found: int, expected: int, size: int, masked: str = "") -> Exception:
    values = [value.to_bytes(size, "little").hex() for value in (found, expected)]
    return refuse(
        "qe_identity_mismatch",
        f"quoting enclave: {field} is {values[0]}, must be {values[1]}{masked}: it is not the "
        "enclave of QE identity",
    )


def _integer(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "little")
