"""Which part of a platform's firmware is behind, and what Intel's levels want of it.

A platform is compared with each TCB level in turn, newest first: the 16 SGX components (CPUSVN)
and PCESVN of its PCK certificate, and in a TD's quote the 16 TDX components (TEE_TCB_SVN). Where
the second of these is not 0, it is the version of the TDX module, whose SVN, the first, has levels
of its own; so has the quoting enclave (Intel's PCS documentation, "Get TDX TCB Info").
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from attestkit._crypto.x509.sgx_extension import PckExtension
from attestkit.collateral import Collateral
from attestkit.quote import Quote, TdQuoteBody
from attestkit.verifier.dcap.pck_chain import chain_of, read_pck_chain
from attestkit.verifier.dcap.tcb_info import (
    Component,
    PlatformLevel,
    SvnLevel,
    TcbInfo,
    read_qe_identity,
    read_tcb_info,
)

__all__ = ["shortfall", "unsupported"]

_LABEL = 60  # characters of a component's label; Intel's have 30


class _Behind(NamedTuple):
    """A component below a level."""

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


class _Measured(NamedTuple):
    """The SVNs of one platform."""

    platform: PckExtension
    tee_tcb_svns: tuple[bytes, ...]  # 16 bytes each: at launch, and in TDX 1.5 the current ones
    qe_isvsvn: int


def shortfall(collateral: Collateral, quote: Quote) -> str:
    """Return a sentence on the first component of the platform that is below the newest level.

    Where none is, the sentence says so, with the status of the newest level. Nothing is verified:
    ask about evidence that has been.

    Raises:
        CollateralError: The collateral is malformed, or not the quote's.
        FormatError: The quote's PCK certificate is malformed.
    """
    info, measured = read_tcb_info(collateral.tcb_info), _measured(collateral, quote)
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
    return _itself(newest)


def unsupported(collateral: Collateral, quote: Quote) -> str:
    """Return a sentence on a platform that is below every level; errors as `shortfall`."""
    info, measured = read_tcb_info(collateral.tcb_info), _measured(collateral, quote)
    newest, oldest = (
        _platform(levels, measured) for levels in (info.tcb_levels[:1], info.tcb_levels[-1:])
    )
    if oldest is None or len(info.tcb_levels) == 1:
        return shortfall(collateral, quote)
    return f"{newest}; it is below the oldest level too: {oldest}"


def _measured(collateral: Collateral, quote: Quote) -> _Measured:
    chain = read_pck_chain(*chain_of(quote, collateral.pck_certificate_chain))
    body = quote.body
    svns: tuple[bytes, ...] = ()
    if isinstance(body, TdQuoteBody):
        svns = tuple(svn for svn in (body.tee_tcb_svn, body.tee_tcb_svn2) if svn is not None)
    return _Measured(chain.platform, svns, quote.qe_report.isv_svn)


def _platform(levels: Sequence[PlatformLevel], measured: _Measured) -> _Behind | None:
    """Return the first component below any of the `levels`."""
    for level in levels:
        for name, svn, wanted in _compared(level, measured):
            if svn < wanted.svn:
                label = ": ".join(filter(None, (wanted.category, wanted.type)))[:_LABEL]
                return _Behind(name, svn, wanted.svn, level.tcb_date, label)
    return None


def _compared(level: PlatformLevel, measured: _Measured) -> Iterator[tuple[str, int, Component]]:
    """Return name, SVN and what is wanted of each component, in the order of comparison."""
    platform, tcb = measured.platform, level.tcb
    for n, (svn, wanted) in enumerate(zip(platform.cpusvn, tcb.sgx, strict=True), 1):
        yield f"SGX component {n}", svn, wanted
    yield "PCESVN", platform.pcesvn, Component(tcb.pcesvn)
    for svns in measured.tee_tcb_svns:
        numbered = list(enumerate(zip(svns, tcb.tdx, strict=False), 1))
        for n, (svn, wanted) in numbered[2 if svns[1] else 0 :]:
            yield f"TDX component {n}", svn, wanted


def _module(info: TcbInfo, svns: bytes) -> tuple[str, int, Sequence[SvnLevel]]:
    """Return name, SVN and levels of the TDX module; no levels where it has none of its own."""
    name = f"TDX_{svns[1]:02X}"
    found = [one.tcb_levels for one in info.tdx_module_identities if one.id.upper() == name]
    levels = found[0] if found and svns[1] else []
    return f"TDX component 1 (module {name})", svns[0], levels


def _itself(newest: Sequence[tuple[str, PlatformLevel | SvnLevel]]) -> str:
    """Return the sentence for a platform that is nowhere behind."""
    behind = [(name, level) for name, level in newest if level.tcb_status != "UpToDate"]
    for name, level in behind or newest:
        advisories = f" ({', '.join(level.advisory_ids)})" if level.advisory_ids else ""
        return (
            f"no component is below its newest level; that of {name}, from "
            f"{level.tcb_date:%Y-%m}, is itself {level.tcb_status}{advisories}"
        )
    return "there are no TCB levels"


def _below(name: str, svn: int, levels: Sequence[SvnLevel]) -> _Behind | None:
    if levels and svn < levels[0].tcb.isvsvn:
        return _Behind(name, svn, levels[0].tcb.isvsvn, levels[0].tcb_date)
    return None
