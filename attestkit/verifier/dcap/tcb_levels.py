"""Outdated components of a platform, in comparison with Intel's TCB levels.

A platform is compared with the TCB levels, newest first: by the 16 SGX components (CPUSVN) and
PCESVN of its PCK certificate, and for a TD by the 16 TDX components of the quote (TEE_TCB_SVN). If
TDX component 2 is not 0, it is the version of the TDX module, and component 1 is the module's SVN,
for which TCB info has separate levels. The quoting enclave has separate levels, too (Intel's PCS
documentation, "Get TDX TCB Info").
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from attestkit._crypto.x509.sgx_extension import PckExtension
from attestkit.collateral import Collateral
from attestkit.quote import Quote, TdQuoteBody
from attestkit.verifier.dcap.pck_chain import read_pck_chain, select_chain
from attestkit.verifier.dcap.tcb_info import (
    Component,
    PlatformLevel,
    SvnLevel,
    TcbInfo,
    read_qe_identity,
    read_tcb_info,
)

_LABEL = 60  # characters of a component's label; Intel's have 30


class _OutdatedComponent(NamedTuple):
    """Component below a TCB level."""

    name: str
    svn: int
    wanted: int
    date: datetime  # of the level
    label: str = ""

    def __str__(self) -> str:
        label = f" ({self.label})" if self.label else ""
        return (
            f"{self.name} is {self.svn}, the level from {self.date:%Y-%m} needs "
            f"{self.wanted}{label}"
        )


class _PlatformSvns(NamedTuple):
    """SVNs of a platform."""

    platform: PckExtension
    tee_tcb_svns: tuple[bytes, ...]  # 16 bytes each: at launch, and in TDX 1.5 the current ones
    qe_isvsvn: int


def shortfall(collateral: Collateral, quote: Quote) -> str:
    """Return a sentence on the first component that is below the newest level.

    If no component is, the sentence gives the status of the newest level. Quote and collateral must
    have been verified before.

    Raises:
        CollateralError: If the collateral is malformed, or of another platform.
        FormatError: If the quote's PCK certificate is malformed.
    """
    info, measured = read_tcb_info(collateral.tcb_info), _platform_svns(collateral, quote)
    enclave = read_qe_identity(collateral.qe_identity).tcb_levels
    modules = [_module(info, svns) for svns in measured.tee_tcb_svns]
    found = _platform(info.tcb_levels[:1], measured)
    for name, svn, levels in (*modules, ("the quoting enclave's SVN", measured.qe_isvsvn, enclave)):
        found = found or _below(name, svn, levels)
    if found is not None:
        return str(found)
    newest: list[tuple[str, PlatformLevel | SvnLevel]]
    newest = [("the platform", level) for level in info.tcb_levels[:1]]
    newest += [("the TDX module", level) for _, _, levels in modules for level in levels[:1]]
    newest += [("the quoting enclave", level) for level in enclave[:1]]
    return _newest_level_sentence(newest)


def unsupported(collateral: Collateral, quote: Quote) -> str:
    """Return a sentence on a platform that is below all levels; same errors as `shortfall`."""
    info, measured = read_tcb_info(collateral.tcb_info), _platform_svns(collateral, quote)
    newest, oldest = (
        _platform(levels, measured) for levels in (info.tcb_levels[:1], info.tcb_levels[-1:])
    )
    if oldest is None or len(info.tcb_levels) == 1:
        return shortfall(collateral, quote)
    return f"{newest}; it is below the oldest level too: {oldest}"


def _platform_svns(collateral: Collateral, quote: Quote) -> _PlatformSvns:
    chain = read_pck_chain(*select_chain(quote, collateral.pck_certificate_chain))
    body = quote.body
    svns: tuple[bytes, ...] = ()
    if isinstance(body, TdQuoteBody):
        svns = tuple(svn for svn in (body.tee_tcb_svn, body.tee_tcb_svn2) if svn is not None)
    return _PlatformSvns(chain.platform, svns, quote.qe_report.isv_svn)


def _platform(
    levels: Sequence[PlatformLevel], measured: _PlatformSvns
) -> _OutdatedComponent | None:
    """Return the first component that is below one of `levels`, newest first; None if none is."""
    for level in levels:
        for name, svn, wanted in _compared(level, measured):
            if svn < wanted.svn:
                label = ": ".join(filter(None, (wanted.category, wanted.type)))[:_LABEL]
                return _OutdatedComponent(name, svn, wanted.svn, level.tcb_date, label)
    return None


def _compared(
    level: PlatformLevel, measured: _PlatformSvns
) -> Iterator[tuple[str, int, Component]]:
    """Yield name, SVN and requirement of each component, in the order of comparison."""
    platform, tcb = measured.platform, level.tcb
    for n, (svn, wanted) in enumerate(zip(platform.cpusvn, tcb.sgx, strict=True), 1):
        yield f"SGX component {n}", svn, wanted
    yield "PCESVN", platform.pcesvn, Component(tcb.pcesvn)
    for svns in measured.tee_tcb_svns:
        numbered = list(enumerate(zip(svns, tcb.tdx, strict=False), 1))
        for n, (svn, wanted) in numbered[2 if svns[1] else 0 :]:
            yield f"TDX component {n}", svn, wanted


def _module(info: TcbInfo, svns: bytes) -> tuple[str, int, Sequence[SvnLevel]]:
    """Return name, SVN and levels of the TDX module; no levels if it has no identity."""
    name = f"TDX_{svns[1]:02X}"
    found = [one.tcb_levels for one in info.tdx_module_identities if one.id.upper() == name]
    levels = found[0] if found and svns[1] else []
    return f"TDX component 1 (module {name})", svns[0], levels


def _newest_level_sentence(newest: Sequence[tuple[str, PlatformLevel | SvnLevel]]) -> str:
    """Return the sentence for a platform without outdated components."""
    behind = [(name, level) for name, level in newest if level.tcb_status != "UpToDate"]
    for name, level in behind or newest:
        advisories = f" ({', '.join(level.advisory_ids)})" if level.advisory_ids else ""
        return (
            f"no component is below its newest level; that of {name}, from "
            f"{level.tcb_date:%Y-%m}, is itself {level.tcb_status}{advisories}"
        )
    return "there are no TCB levels"


def _below(name: str, svn: int, levels: Sequence[SvnLevel]) -> _OutdatedComponent | None:
    if levels and svn < levels[0].tcb.isvsvn:
        return _OutdatedComponent(name, svn, levels[0].tcb.isvsvn, levels[0].tcb_date)
    return None
