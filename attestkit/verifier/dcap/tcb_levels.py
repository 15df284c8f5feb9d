"""Comparison of a platform with Intel's TCB levels: the status, and texts on outdated components.

A platform is compared by the 16 SGX components and PCESVN of its PCK certificate, and a TD also by
the 16 TDX components of the quote (TEE_TCB_SVN). If TDX component 2 is not 0, it is the version of
the TDX module, and component 1 is the module's SVN; TCB info has separate levels for that module.
The quoting enclave has separate levels, too.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from operator import ge
from typing import Final, NamedTuple

from attestkit._crypto.x509.sgx_extension import PckExtension
from attestkit.quote import EnclaveReport, TdQuoteBody
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.dcap.reasons import FRESH, refuse
from attestkit.verifier.dcap.tcb_info import (
    Component,
    PlatformLevel,
    QeIdentity,
    SvnLevel,
    TcbInfo,
    TdxModule,
    check_quoting_enclave,
)

_SHOWN = 200  # characters of advisories
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


def shown_advisories(advisory_ids: tuple[str, ...]) -> str:
    """Return advisory ids for an error text: separated by commas, escaped to ASCII, and cut."""
    return ascii(", ".join(advisory_ids)[:_SHOWN])[1:-1]


class _OutdatedComponent(NamedTuple):
    """Component whose SVN is below that of a TCB level."""

    name: str
    svn: int
    needed: int
    date: int  # of the level
    label: str = ""

    def __str__(self) -> str:
        label = f" ({self.label})" if self.label else ""
        return (
            f"{self.name} is {self.svn}, the level from {_month(self.date)} needs {self.needed}"
            f"{label}"
        )


def explain_below_all(info: TcbInfo, platform: PckExtension, svns: bytes) -> str:
    """Return the text for a platform that is below all of `info.levels`.

    `svns` is TEE_TCB_SVN of a TD (16 bytes); empty for SGX.
    """
    newest = _first_below(info.levels[0], info, platform, svns)
    oldest = _first_below(info.levels[-1], info, platform, svns)
    text = f"the platform is below every TCB level: {newest or oldest}"
    if newest is not None and oldest is not None and len(info.levels) > 1:
        text += f"; it is below the oldest level too: {oldest}"
    return f"{text}; update the platform's firmware"


def below_svn_levels(levels: tuple[SvnLevel, ...], svn: int, part: str) -> str:
    """Return the text for a TDX module or a quoting enclave that is below all of its levels.

    Args:
        levels: Its levels, highest first.
        svn: Its SVN (ISVSVN).
        part: Its name in the text.
    """
    newest = _OutdatedComponent(part, svn, levels[0].isvsvn, levels[0].date)
    return f"a component is below all of its TCB levels: {newest}; update it"


def explain_revoked(levels: Mapping[str, PlatformLevel | SvnLevel]) -> str:
    """Return the text for a revoked TCB.

    `levels` are the matching levels by the name of the platform's part; one must be Revoked.
    """
    part, level = next(
        (part, level) for part, level in levels.items() if level.status is TcbStatus.REVOKED
    )
    advisories = f" ({shown_advisories(level.advisory_ids)})" if level.advisory_ids else ""
    return (
        f"Intel has revoked the TCB level of {part}, from {_month(level.date)}{advisories}, and no "
        "policy accepts it; update the platform's firmware"
    )


def explain_status(
    info: TcbInfo,
    enclave: tuple[SvnLevel, ...],
    platform: PckExtension,
    svns: tuple[bytes, ...],
    qe_svn: int,
) -> str:
    """Return a sentence on the first component that is below its newest level.

    If no component is, the sentence gives the status of the newest level.

    Args:
        info: TCB info.
        enclave: Levels of QE identity.
        platform: Content of the PCK certificate.
        svns: SVNs of a TD, 16 bytes each: at launch, and current ones in TDX 1.5; none for SGX.
        qe_svn: ISVSVN of the quoting enclave.
    """
    newest: list[tuple[str, PlatformLevel | SvnLevel]] = [("the platform", info.levels[0])]
    outdated = [_first_below(info.levels[0], info, platform, given) for given in svns or (b"",)]
    for given in svns:
        name = f"TDX_{given[1]:02X}"
        module = info.modules.get(name) if given[1] else None
        if module is not None:
            newest.append(("the TDX module", module.levels[0]))
            outdated.append(_below(f"TDX component 1 (module {name})", given[0], module.levels))
    newest.append(("the quoting enclave", enclave[0]))
    outdated.append(_below("the quoting enclave's SVN", qe_svn, enclave))
    for component in outdated:
        if component is not None:
            return str(component)
    return _newest_level_sentence(newest)


def _first_below(
    level: PlatformLevel, info: TcbInfo, platform: PckExtension, svns: bytes
) -> _OutdatedComponent | None:
    """Return the first component of the platform that is below a level; None if none is.

    Args:
        level: TCB level.
        info: TCB info, which describes the components.
        platform: Content of the PCK certificate.
        svns: The 16 SVNs of a TD; empty for SGX.
    """
    for name, svn, needed, component in _compared(level, info, platform, svns):
        if svn < needed:
            label = "" if component is None else component.label
            return _OutdatedComponent(name, svn, needed, level.date, label)
    return None


def _compared(
    level: PlatformLevel, info: TcbInfo, platform: PckExtension, svns: bytes
) -> Iterator[tuple[str, int, int, Component | None]]:
    """Yield name, SVN, needed SVN and description of each component, in the order of comparison.

    The description is None for PCESVN.

    Args:
        level: TCB level.
        info: TCB info, which describes the components.
        platform: Content of the PCK certificate.
        svns: The 16 SVNs of a TD; empty for SGX.
    """
    for n, svn in enumerate(platform.components):
        yield f"SGX component {n + 1}", svn, level.sgx[n], info.sgx_components[n]
    yield "PCESVN", platform.pcesvn, level.pcesvn, None
    # The first two components of a TDX module with a version are compared with its own levels.
    for n in range(2 if svns and svns[1] else 0, len(svns)):
        yield f"TDX component {n + 1}", svns[n], level.tdx[n], info.tdx_components[n]


def _below(part: str, svn: int, levels: tuple[SvnLevel, ...]) -> _OutdatedComponent | None:
    if svn < levels[0].isvsvn:
        return _OutdatedComponent(part, svn, levels[0].isvsvn, levels[0].date)
    return None


def _newest_level_sentence(newest: list[tuple[str, PlatformLevel | SvnLevel]]) -> str:
    behind = [(name, level) for name, level in newest if level.status is not TcbStatus.UP_TO_DATE]
    name, level = (behind or newest)[0]
    advisories = f" ({shown_advisories(level.advisory_ids)})" if level.advisory_ids else ""
    return (
        f"no component is below its newest level; that of {name}, from {_month(level.date)}, is "
        f"itself {level.status.value}{advisories}"
    )


def _month(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m}"


class TcbEvaluation(NamedTuple):
    """Result of `evaluate_tcb`: statuses, advisories, and dates of the matching levels."""

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
        VerificationError: If the quoting enclave is not that of QE identity, or the TDX module not
            one of TCB info (`qe_identity_mismatch`, `tdx_module_mismatch`), a part is below all of
            its levels (`tcb_not_supported`), or a level is revoked (`tcb_revoked`).
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
    """Matching levels and status by one set of TDX SVNs: those at launch, or current ones."""

    levels: dict[str, PlatformLevel | SvnLevel]  # by the name of the part
    status: TcbStatus

    @property
    def advisory_ids(self) -> tuple[str, ...]:
        """Advisories of platform and TDX module."""
        levels = list(self.levels.values())[:-1]
        return tuple(advisory for level in levels for advisory in level.advisory_ids)

    @property
    def date(self) -> int:
        """Date of the platform's level or the TDX module's, whichever is older; Unix seconds."""
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
        message = f"TDX module: TCB info has no module of version {version}; {FRESH}"
        raise refuse("tdx_module_mismatch", message)
    return module


def _check_module(info: TcbInfo, body: TdQuoteBody) -> None:
    """Check signer and attributes of the TDX module that launched the TD."""
    module = _find_module(info, body.tee_tcb_svn)
    if body.mr_signer_seam != module.mrsigner:
        found, expected = body.mr_signer_seam.hex(), module.mrsigner.hex()
        message = f"TDX module: MRSIGNERSEAM is {found}, must be {expected}, as in TCB info"
        raise refuse("tdx_module_mismatch", message)
    # Zero is required whatever the mask, as in Intel's library.
    if any(body.seam_attributes) or any(module.attributes):
        found, expected = body.seam_attributes.hex(), module.attributes.hex()
        message = (
            f"TDX module: SEAMATTRIBUTES must be zero, but are {found} in the quote, {expected} in "
            "TCB info"
        )
        raise refuse("tdx_module_mismatch", message)


def _converge(platform: TcbStatus, *parts: TcbStatus) -> TcbStatus:
    """Combine the status of a platform with those of its parts: TDX module, quoting enclave."""
    if _REVOKED in (platform, *parts):
        return _REVOKED
    if _OUT_OF_DATE in parts:
        return _WITH_OUTDATED_PART.get(platform, platform)
    return platform


def _relaunch(launch: TcbStatus, current: TcbStatus) -> TcbStatus:
    """Combine a TDX 1.5 TD's status by the SVNs at its launch with that by current SVNs."""
    if launch not in _OUTDATED or current not in _CURRENT:
        return launch
    if launch in _NEEDS_CONFIGURATION or current in _NEEDS_CONFIGURATION:
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
    return TcbStatus.TD_RELAUNCH_ADVISED
