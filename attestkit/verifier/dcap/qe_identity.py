"""QE identity (version 2): decoding, and its comparison with a QE report.

dcap-verification.md, sections 6 and 8.1; Intel's PCS documentation, "Get TDX Quoting Enclave
Identity".
"""

from typing import Final, NamedTuple

import msgspec

from attestkit.quote import EnclaveReport
from attestkit.verifier.dcap.reasons import refuse
from attestkit.verifier.dcap.signed_body import (
    QE_IDENTITY,
    Date,
    Hex4,
    Hex16,
    Hex32,
    Uint16,
    Uint32,
    decode_body,
    seconds,
)
from attestkit.verifier.dcap.tcb_info import SGX, TDX, EncodedSvnLevel, SvnLevel, sorted_levels

_DEBUG: Final = 0x02  # bit of the attributes


class QeIdentity(NamedTuple):
    """QE identity; masks and masked values are integers of their little-endian bytes."""

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


_decoder: Final = msgspec.json.Decoder(_QeIdentity)
_TYPE: Final = {"version": (2,), "id": ("QE", "TD_QE")}


def read_qe_identity(text: str) -> QeIdentity:
    """Decode QE identity; levels are sorted, highest first, whatever their order in the text.

    Raises:
        CollateralError: If it is malformed, or has a level twice (`qe_identity_malformed`).
        VerificationError: If it is of another type or version (`qe_identity_wrong_type`).
    """
    identity = decode_body(QE_IDENTITY, text, _decoder, _TYPE)
    levels = sorted_levels(identity.tcb_levels, QE_IDENTITY)
    if not levels or len({level[:2] for level in levels}) != len(levels):
        raise QE_IDENTITY.refuse("tcbLevels: empty, or two of the same ISVSVN and date")
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
    """Check that the QE report is that of the quoting enclave in `identity`.

    Expected values are not masked: a bit outside of the mask can never match.

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
        message = "quoting enclave: runs in debug mode; QE identity is that of another enclave"
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
