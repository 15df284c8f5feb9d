"""Comparison of a platform with Intel's TCB levels, and the status that results.

A platform is compared by the 16 SGX components and PCESVN of its PCK certificate, and a TD also by
the 16 TDX components of the quote (TEE_TCB_SVN). If TDX component 2 is not 0, it is the version of
the TDX module, and component 1 is the module's SVN; TCB info has separate levels for that module.
The quoting enclave has separate levels, too (dcap-verification.md, section 8).
"""

from operator import ge
from typing import Final, NamedTuple

from attestkit._crypto.x509.sgx_extension import PckExtension
from attestkit.quote import EnclaveReport, TdQuoteBody
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.dcap.qe_identity import QeIdentity, check_quoting_enclave
from attestkit.verifier.dcap.reasons import refuse
from attestkit.verifier.dcap.tcb_explanation import (
    below_svn_levels,
    explain_below_all,
    explain_revoked,
)
from attestkit.verifier.dcap.tcb_info import PlatformLevel, SvnLevel, TcbInfo, TdxModule

_OUT_OF_DATE: Final = TcbStatus.OUT_OF_DATE
_REVOKED: Final = TcbStatus.REVOKED
# Status of a platform whose TDX module or quoting enclave is out of date.
_WITH_OUTDATED_PART: Final = {
    TcbStatus.UP_TO_DATE: TcbStatus.OUT_OF_DATE,
    TcbStatus.SW_HARDENING_NEEDED: TcbStatus.OUT_OF_DATE,
    TcbStatus.CONFIGURATION_NEEDED: TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
}
_CURRENT: Final = frozenset(_WITH_OUTDATED_PART)  # statuses that are not out of date
_OUTDATED: Final = frozenset(_WITH_OUTDATED_PART.values())
_NEEDS_CONFIGURATION: Final = frozenset(
    {
        TcbStatus.CONFIGURATION_NEEDED,
        TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
        TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    }
)


class TcbEvaluation(NamedTuple):
    """Result of the comparison."""

    status: TcbStatus
    advisory_ids: tuple[str, ...]  # of platform, TDX module and quoting enclave, each once
    date: int  # Unix seconds: of the platform's level, or of the module's if it is older
    qe_date: int  # Unix seconds
    qe_status: TcbStatus


def evaluate_tcb(
    info: TcbInfo,
    identity: QeIdentity,
    platform: PckExtension,
    qe_report: EnclaveReport,
    body: TdQuoteBody | None,
) -> TcbEvaluation:
    """Compare quoting enclave, TDX module and platform with their levels.

    Args:
        info: TCB info of the quote's TEE and the platform's FMSPC.
        identity: QE identity of the quote's TEE.
        platform: Content of the PCK certificate.
        qe_report: Report of the quoting enclave.
        body: Body of a TD's quote; None for SGX.

    Raises:
        VerificationError: If the quoting enclave or the TDX module is another one
            (`qe_identity_mismatch`, `tdx_module_mismatch`), a part is below all of its levels
            (`tcb_not_supported`), or a level is revoked (`tcb_revoked`).
    """
    check_quoting_enclave(qe_report, identity)
    qe = _svn_level(identity.levels, qe_report.isv_svn, "the quoting enclave's SVN")
    if body is None:
        launch, current = _evaluate(info, platform, b"", qe), None
    else:
        _check_module(info, body)
        launch = _evaluate(info, platform, body.tee_tcb_svn, qe)
        svns = body.tee_tcb_svn2
        current = None if svns is None else _evaluate(info, platform, svns, qe)
    for found in (launch, current):
        if found is not None and found.status is _REVOKED:
            raise refuse("tcb_revoked", explain_revoked(found.levels))
    status = launch.status if current is None else _relaunch(launch.status, current.status)
    advisory_ids = [*launch.advisory_ids, *qe.advisory_ids]
    if current is not None:
        advisory_ids += current.advisory_ids
    return TcbEvaluation(
        status, tuple(dict.fromkeys(advisory_ids)), launch.date, qe.date, qe.status
    )


class _Evaluation(NamedTuple):
    """Comparison by one set of TDX SVNs."""

    levels: dict[str, PlatformLevel | SvnLevel]  # by the name of the part
    status: TcbStatus

    @property
    def advisory_ids(self) -> tuple[str, ...]:
        """Advisories of platform and TDX module."""
        levels = list(self.levels.values())[:-1]
        return tuple(advisory for level in levels for advisory in level.advisory_ids)

    @property
    def date(self) -> int:
        """Older date of platform and TDX module."""
        return min(level.date for level in list(self.levels.values())[:-1])


def _evaluate(info: TcbInfo, platform: PckExtension, svns: bytes, qe: SvnLevel) -> _Evaluation:
    # The levels of a module with a version replace the first two components.
    skipped = 2 if svns and svns[1] else 0
    levels: dict[str, PlatformLevel | SvnLevel] = {
        "the platform": _platform_level(info, platform, svns, skipped)
    }
    if skipped:
        module = _find_module(info, svns)
        levels["the TDX module"] = _svn_level(module.levels, svns[0], "the TDX module's SVN")
    levels["the quoting enclave"] = qe
    return _Evaluation(levels, _converge(*(level.status for level in levels.values())))


def _platform_level(
    info: TcbInfo, platform: PckExtension, svns: bytes, skipped: int
) -> PlatformLevel:
    for level in info.levels:
        if (
            platform.pcesvn >= level.pcesvn
            and all(map(ge, platform.components, level.sgx))
            and all(map(ge, svns[skipped:], level.tdx[skipped:]))
        ):
            return level
    raise refuse("tcb_not_supported", explain_below_all(info, platform, svns))


def _svn_level(levels: tuple[SvnLevel, ...], svn: int, part: str) -> SvnLevel:
    for level in levels:
        if svn >= level.isvsvn:
            return level
    raise refuse("tcb_not_supported", below_svn_levels(levels, svn, part))


def _find_module(info: TcbInfo, svns: bytes) -> TdxModule:
    version = svns[1]
    module = info.modules.get(f"TDX_{version:02X}") if version else info.module
    if module is None:
        message = f"TDX module: TCB info has no module of version {version}"
        raise refuse("tdx_module_mismatch", message)
    return module


def _check_module(info: TcbInfo, body: TdQuoteBody) -> None:
    """Check signer and attributes of the TDX module, by the version at launch."""
    module = _find_module(info, body.tee_tcb_svn)
    if body.mr_signer_seam != module.mrsigner:
        found, expected = body.mr_signer_seam.hex(), module.mrsigner.hex()
        message = f"TDX module: MRSIGNERSEAM is {found}, must be {expected}"
        raise refuse("tdx_module_mismatch", message)
    # Zero is required whatever the mask, as in Intel's library.
    if any(body.seam_attributes) or any(module.attributes):
        found, expected = body.seam_attributes.hex(), module.attributes.hex()
        message = f"TDX module: SEAMATTRIBUTES must be zero: {found}, {expected} in TCB info"
        raise refuse("tdx_module_mismatch", message)


def _converge(platform: TcbStatus, *parts: TcbStatus) -> TcbStatus:
    """Combine the status of a platform with those of TDX module and quoting enclave."""
    if _REVOKED in (platform, *parts):
        return _REVOKED
    if _OUT_OF_DATE in parts:
        return _WITH_OUTDATED_PART.get(platform, platform)
    return platform


def _relaunch(launch: TcbStatus, current: TcbStatus) -> TcbStatus:
    """Combine the statuses of a TD 1.5 at its launch and now (section 8.6)."""
    if launch not in _OUTDATED or current not in _CURRENT:
        return launch
    if launch in _NEEDS_CONFIGURATION or current in _NEEDS_CONFIGURATION:
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
    return TcbStatus.TD_RELAUNCH_ADVISED
