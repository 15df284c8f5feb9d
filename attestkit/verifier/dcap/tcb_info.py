"""TCB info and QE identity, the two JSON bodies that Intel signs, as far as we look into them.

They are Intel's "TCB Info V3" and "Enclave Identity V2" of its provisioning certification service,
versions 3 and 4; simulated-pki.md, section 8, has their keys. Reading believes nothing: whoever
uses a value has the signatures checked first.
"""

from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec

from attestkit._formats.strict_json import check_depth
from attestkit.errors import FormatError
from attestkit.verifier.dcap.reasons import refuse

__all__ = [
    "Component",
    "PlatformLevel",
    "QeIdentity",
    "SvnLevel",
    "TcbInfo",
    "read_qe_identity",
    "read_tcb_info",
]

_T = TypeVar("_T")
_Svn = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_PceId = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{4}$")]
_COMPONENTS: Final = 16


class Component(msgspec.Struct, frozen=True):
    """What a level wants of one part of the firmware."""

    svn: _Svn
    category: str = ""  # who updates it: BIOS, OS/VMM
    type: str = ""  # what it is


class Svns(msgspec.Struct, frozen=True):
    """What a level wants of a platform."""

    sgx: list[Component] = msgspec.field(name="sgxtcbcomponents")  # 16
    pcesvn: _Svn
    tdx: list[Component] = msgspec.field(name="tdxtcbcomponents", default_factory=list)  # 16 or 0


class IsvSvn(msgspec.Struct, frozen=True):
    """What a level wants of a TDX module or an enclave."""

    isvsvn: _Svn


class PlatformLevel(msgspec.Struct, frozen=True, rename="camel"):
    """One TCB level of a platform."""

    tcb: Svns
    tcb_date: _Moment
    tcb_status: str
    advisory_ids: list[str] = msgspec.field(name="advisoryIDs", default_factory=list)


class SvnLevel(msgspec.Struct, frozen=True, rename="camel"):
    """One TCB level of a TDX module or of a quoting enclave."""

    tcb: IsvSvn
    tcb_date: _Moment
    tcb_status: str
    advisory_ids: list[str] = msgspec.field(name="advisoryIDs", default_factory=list)


class ModuleIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """One version of the TDX module."""

    id: str  # TDX_ and two digits
    tcb_levels: list[SvnLevel]  # highest first


class TcbInfo(msgspec.Struct, frozen=True, rename="camel"):
    """What Intel says of all platforms with one FMSPC."""

    id: str  # SGX or TDX
    version: int
    issue_date: _Moment
    next_update: _Moment
    pce_id: _PceId
    tcb_type: int
    tcb_levels: list[PlatformLevel]  # highest first
    tdx_module_identities: list[ModuleIdentity] = msgspec.field(default_factory=list)


class QeIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """What Intel says of a quoting enclave."""

    id: str  # QE or TD_QE
    version: int
    issue_date: _Moment
    next_update: _Moment
    tcb_levels: list[SvnLevel]  # highest first


_tcb_info: Final = msgspec.json.Decoder(TcbInfo)
_qe_identity: Final = msgspec.json.Decoder(QeIdentity)


def read_tcb_info(text: str) -> TcbInfo:
    """Read the TCB info's body.

    Raises:
        CollateralError: It is no TCB info of version 3, or a level has not 16 components of each
            kind; `reason` is `tcb_info_malformed`.
    """
    info = _read("TCB info", "tcb_info_malformed", _tcb_info, text)
    for number, level in enumerate(info.tcb_levels):
        sizes = {len(level.tcb.sgx), len(level.tcb.tdx) if info.id == "TDX" else _COMPONENTS}
        if sizes != {_COMPONENTS}:
            raise refuse(
                "tcb_info_malformed",
                f"TCB info: level {number} has not {_COMPONENTS} components of each kind",
            )
    return info


def read_qe_identity(text: str) -> QeIdentity:
    """Read the QE identity's body.

    Raises:
        CollateralError: It is no QE identity; `reason` is `qe_identity_malformed`.
    """
    return _read("QE identity", "qe_identity_malformed", _qe_identity, text)


def _read(name: str, reason: str, decoder: "msgspec.json.Decoder[_T]", text: str) -> _T:
    try:
        data = text.encode()
        check_depth(data)
        return decoder.decode(data)
    except (msgspec.DecodeError, FormatError, UnicodeEncodeError, RecursionError) as error:
        raise refuse(reason, f"{name} is malformed: fetch fresh collateral") from error
