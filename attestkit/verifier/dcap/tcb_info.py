"""Decoding of TCB info and QE identity, the JSON bodies that Intel signs; not authenticated.

They are "TCB Info V3" and "Enclave Identity V2" of Intel's PCS, versions 3 and 4; simulated-pki.md,
section 8, has their members.
"""

from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec

from attestkit._formats.strict_json import check_depth
from attestkit.errors import FormatError
from attestkit.verifier.dcap.reasons import DcapReason, refuse

_T = TypeVar("_T")
_Svn = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_PceId = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{4}$")]
_COMPONENTS: Final = 16


class Component(msgspec.Struct, frozen=True):
    """Required SVN of a component."""

    svn: _Svn
    category: str = ""  # source of its updates: BIOS, OS/VMM
    type: str = ""  # kind of component


class Svns(msgspec.Struct, frozen=True):
    """Required SVNs of a platform."""

    sgx: list[Component] = msgspec.field(name="sgxtcbcomponents")  # 16
    pcesvn: _Svn
    tdx: list[Component] = msgspec.field(name="tdxtcbcomponents", default_factory=list)  # 16 or 0


class IsvSvn(msgspec.Struct, frozen=True):
    """Required SVN of a TDX module or an enclave."""

    isvsvn: _Svn


class _Level(msgspec.Struct, frozen=True, rename="camel"):
    tcb_date: _Moment
    tcb_status: str
    advisory_ids: list[str] = msgspec.field(name="advisoryIDs", default_factory=list)


class PlatformLevel(_Level, frozen=True, kw_only=True):
    """TCB level of a platform."""

    tcb: Svns


class SvnLevel(_Level, frozen=True, kw_only=True):
    """TCB level of a TDX module or a quoting enclave."""

    tcb: IsvSvn


class ModuleIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """TCB levels of a version of the TDX module."""

    id: str  # TDX_ and two digits
    tcb_levels: list[SvnLevel]  # highest first


class TcbInfo(msgspec.Struct, frozen=True, rename="camel"):
    """TCB info for the platforms of an FMSPC."""

    id: str  # SGX or TDX
    version: int
    issue_date: _Moment
    next_update: _Moment
    pce_id: _PceId
    tcb_type: int
    tcb_levels: list[PlatformLevel]  # highest first
    tdx_module_identities: list[ModuleIdentity] = msgspec.field(default_factory=list)


class QeIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """QE identity."""

    id: str  # QE or TD_QE
    version: int
    issue_date: _Moment
    next_update: _Moment
    tcb_levels: list[SvnLevel]  # highest first


_tcb_info: Final = msgspec.json.Decoder(TcbInfo)
_qe_identity: Final = msgspec.json.Decoder(QeIdentity)


def read_tcb_info(text: str) -> TcbInfo:
    """Decode TCB info.

    Raises:
        CollateralError: If `text` is not TCB info of version 3, or a level does not have 16
            components of each kind (`tcb_info_malformed`).
    """
    info = _read("TCB info", "tcb_info_malformed", _tcb_info, text)
    for number, level in enumerate(info.tcb_levels):
        sizes = {len(level.tcb.sgx), len(level.tcb.tdx) if info.id == "TDX" else _COMPONENTS}
        if sizes != {_COMPONENTS}:
            raise refuse(
                "tcb_info_malformed",
                f"TCB info is malformed: TCB level {number} must have {_COMPONENTS} components of "
                "each kind; fetch fresh collateral",
            )
    return info


def read_qe_identity(text: str) -> QeIdentity:
    """Decode QE identity.

    Raises:
        CollateralError: If the QE identity is malformed (`qe_identity_malformed`).
    """
    return _read("QE identity", "qe_identity_malformed", _qe_identity, text)


def _read(name: str, reason: DcapReason, decoder: "msgspec.json.Decoder[_T]", text: str) -> _T:
    try:
        data = text.encode()
        check_depth(data)
        return decoder.decode(data)
    except (msgspec.DecodeError, FormatError, UnicodeEncodeError, RecursionError) as error:
        raise refuse(reason, f"{name} is malformed; fetch fresh collateral") from error
